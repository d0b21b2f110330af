/* c0cp: copies the first -s times -c bytes of a file into an object, several operations at a time. A shorter file is copied whole. */
#include "c0.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Up to `bytes` bytes; less only at the file's end. */
static ssize_t read_full(int file, char *to, uint64_t bytes)
{
	uint64_t got = 0;

	while (got < bytes) {
		ssize_t now = read(file, to + got, bytes - got);

		if (now < 0 && errno == EINTR)
			continue;
		if (now < 0)
			return -errno;
		if (now == 0)
			break;
		got += (uint64_t)now;
	}
	return (ssize_t)got;
}

static int copy(struct c0 *c0, struct m0_clovis_obj *obj, int file)
{
	const struct c0_args *args = &c0->args;
	uint64_t wanted = args->block_size * args->block_count, op_bytes = c0_op_bytes(c0), done = 0;
	/* Rooms of blocks of 512 bytes: the object ends where the file does, as near as a block can. */
	struct c0_slot slots[C0_WINDOW];
	bool at_end = false;
	int rc = 0, turn, i;

	memset(slots, 0, sizeof slots);
	for (i = 0; i < C0_WINDOW && rc == 0; ++i)
		rc = c0_slot_init(&slots[i], op_bytes);
	for (turn = 0; rc == 0 && done < wanted && !at_end; turn = (turn + 1) % C0_WINDOW) {
		struct c0_slot *slot = &slots[turn];
		uint64_t bytes = op_bytes < wanted - done ? op_bytes : wanted - done, padded;
		ssize_t got = (ssize_t)bytes;

		rc = c0_slot_wait(slot);
		if (rc != 0)
			break;
		if (args->zeros)
			memset(slot->data.ov_buf[0], 0, bytes);
		else
			got = read_full(file, (char *)slot->data.ov_buf[0], bytes);
		if (got < 0) {
			rc = (int)got;
			break;
		}
		at_end = (uint64_t)got < bytes;
		if (got == 0)
			break;
		padded = m0_round_up((uint64_t)got, 4096);
		memset((char *)slot->data.ov_buf[0] + got, 0, padded - (uint64_t)got);
		rc = c0_slot_launch(slot, obj, M0_CLOVIS_OC_WRITE, args->offset + done, padded);
		done += (uint64_t)got;
	}
	for (i = 0; i < C0_WINDOW; ++i) {
		int slot_rc = c0_slot_wait(&slots[i]);

		rc = rc != 0 ? rc : slot_rc;
		c0_slot_fini(&slots[i]);
	}
	return rc;
}

int main(int argc, char **argv)
{
	struct c0 c0;
	struct m0_clovis_obj obj;
	struct stat stat;
	uint64_t index;
	int file = -1, rc = 0, status = EXIT_SUCCESS;

	c0_begin(&c0, argc, argv, C0_WANTS_BLOCKS | C0_WANTS_FILE, "c0cp [OPTIONS] SOURCE");
	if (!c0.args.zeros) {
		file = open(c0.args.file, O_RDONLY | O_CLOEXEC);
		if (file < 0 || fstat(file, &stat) != 0 || S_ISDIR(stat.st_mode)) {
			fprintf(stderr, "c0cp: %s: %s\n", c0.args.file, file < 0 ? strerror(errno) : "a folder");
			c0_end(&c0);
			return EXIT_FAILURE;
		}
		if (S_ISREG(stat.st_mode) && (uint64_t)stat.st_size > c0.args.block_size * c0.args.block_count)
			fprintf(stderr, "c0cp: %s has %lld bytes; the first %llu are copied (-s times -c)\n", c0.args.file,
				(long long)stat.st_size, (unsigned long long)(c0.args.block_size * c0.args.block_count));
	}
	for (index = 0; index < c0.args.objects && status == EXIT_SUCCESS; ++index) {
		rc = c0_create(&c0, &obj, index);
		if (rc == -EEXIST && c0.args.update) {
			m0_clovis_obj_fini(&obj);
			rc = c0_open(&c0, &obj, index);
		}
		if (rc != 0) {
			status = c0_failed(&c0, rc, "cannot be made");
		} else {
			if (c0.args.print_pool_version)
				printf(FID_F "\n", FID_P(&obj.ob_attr.oa_pver));
			if (file >= 0 && index > 0 && lseek(file, 0, SEEK_SET) < 0)
				rc = -errno;
			if (rc == 0)
				rc = copy(&c0, &obj, file);
			if (rc != 0)
				status = c0_failed(&c0, rc, "cannot be written");
		}
		m0_clovis_obj_fini(&obj);
	}
	if (file >= 0)
		close(file);
	c0_end(&c0);
	return status;
}
