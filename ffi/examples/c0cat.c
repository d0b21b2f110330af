/* c0cat: gives the first -s times -c bytes of an object, to a file or to standard output, several operations at a time. */
#include "c0.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int write_full(int file, const char *from, uint64_t bytes)
{
	while (bytes > 0) {
		ssize_t now = write(file, from, bytes);

		if (now < 0 && errno == EINTR)
			continue;
		if (now < 0)
			return -errno;
		from += now;
		bytes -= (uint64_t)now;
	}
	return 0;
}

static int copy(struct c0 *c0, struct m0_clovis_obj *obj, int file)
{
	const struct c0_args *args = &c0->args;
	uint64_t wanted = args->block_size * args->block_count, op_bytes = c0_op_bytes(c0), launched = 0, done = 0;
	struct c0_slot slots[C0_WINDOW];
	int rc = 0, i;
	unsigned first = 0, next = 0;

	memset(slots, 0, sizeof slots);
	for (i = 0; i < C0_WINDOW && rc == 0; ++i)
		rc = c0_slot_init(&slots[i], op_bytes);
	while (rc == 0 && done < wanted) {
		struct c0_slot *slot;

		while (rc == 0 && launched < wanted && next - first < C0_WINDOW) {
			uint64_t bytes = op_bytes < wanted - launched ? op_bytes : wanted - launched;

			rc = c0_slot_launch(&slots[next++ % C0_WINDOW], obj, M0_CLOVIS_OC_READ, args->offset + launched, bytes);
			launched += bytes;
		}
		if (rc != 0)
			break;
		slot = &slots[first++ % C0_WINDOW];
		rc = c0_slot_wait(slot);
		if (rc == 0)
			rc = write_full(file, (const char *)slot->data.ov_buf[0], slot->bytes);
		done += slot->bytes;
	}
	for (i = 0; i < C0_WINDOW; ++i) {
		c0_slot_wait(&slots[i]);
		c0_slot_fini(&slots[i]);
	}
	return rc;
}

int main(int argc, char **argv)
{
	struct c0 c0;
	struct m0_clovis_obj obj;
	uint64_t index;
	int file = STDOUT_FILENO, rc, status = EXIT_SUCCESS;

	c0_begin(&c0, argc, argv, C0_WANTS_BLOCKS | C0_MAY_HAVE_FILE, "c0cat [OPTIONS] [DEST]");
	for (index = 0; index < c0.args.objects && status == EXIT_SUCCESS; ++index) {
		rc = c0_open(&c0, &obj, index);
		if (rc != 0) {
			status = c0_failed(&c0, rc, "cannot be opened");
			break;
		}
		if (index == 0 && c0.args.file != NULL) {
			/* Only now: an object that is not there leaves no empty file. */
			file = open(c0.args.file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
			if (file < 0) {
				fprintf(stderr, "c0cat: %s: %s\n", c0.args.file, strerror(errno));
				status = EXIT_FAILURE;
			}
		}
		if (status == EXIT_SUCCESS) {
			if (c0.args.print_pool_version)
				fprintf(stderr, FID_F "\n", FID_P(&obj.ob_attr.oa_pver));
			rc = copy(&c0, &obj, file);
			if (rc != 0)
				status = c0_failed(&c0, rc, "cannot be read");
		}
		m0_clovis_obj_fini(&obj);
	}
	if (file > STDOUT_FILENO && close(file) != 0) {
		fprintf(stderr, "c0cat: %s: %s\n", c0.args.file, strerror(errno));
		status = EXIT_FAILURE;
	}
	c0_end(&c0);
	return status;
}
