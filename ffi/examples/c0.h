/*
 * What c0cp, c0cat, c0touch and c0rm share: their flags, an instance, an open object. Written against the installed headers only.
 *
 * Flags of both families are taken: of 2019 -l -H -p -P -o -s -c -r, of 2020 and later also -i -t -L -v -n -S -q -b -O -u -e -z -G -I -g.
 */
#ifndef CLOVIS_EXAMPLES_C0_H
#define CLOVIS_EXAMPLES_C0_H

#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include <stdint.h>

/* Bytes of one operation at most, and operations at a time. */
enum { C0_OP_BYTES = 32 << 20, C0_WINDOW = 4 };

struct c0_args {
	const char *local, *ha, *profile, *process;
	struct m0_uint128 id;
	uint64_t block_size;
	uint64_t block_count;
	/* Objects from `id` on (-n), and where in the object to begin (-O). */
	uint64_t objects;
	uint64_t offset;
	uint64_t layout_id;
	/* Blocks of one operation (-b), 0 for as many as fit C0_OP_BYTES. */
	uint64_t blocks_per_io;
	uint32_t message_size, queue_length;
	bool has_id, has_block_size, has_block_count, has_layout, update, read_verify, print_pool_version, zeros;
	/* What is left: SOURCE or DEST. */
	const char *file;
};

struct c0 {
	const char *program;
	struct c0_args args;
	struct m0_clovis_config config;
	struct m0_idx_dix_config index_config;
	struct m0_clovis *instance;
	struct m0_clovis_container container;
};

enum c0_wants { C0_WANTS_BLOCKS = 1, C0_WANTS_FILE = 2, C0_MAY_HAVE_FILE = 4 };

/* Parses, connects. Ends the program with a line on standard error if it cannot. */
void c0_begin(struct c0 *c0, int argc, char **argv, unsigned wants, const char *usage);
void c0_end(struct c0 *c0);
/* One line on standard error; EXIT_FAILURE. */
int c0_failed(const struct c0 *c0, int rc, const char *what);
/* Creates or opens object number `index` from the given one; the outcome. */
int c0_create(struct c0 *c0, struct m0_clovis_obj *obj, uint64_t index);
int c0_open(struct c0 *c0, struct m0_clovis_obj *obj, uint64_t index);
int c0_delete(struct c0 *c0, struct m0_clovis_obj *obj);

/* One operation of a window of several: its vectors are made once and used again and again. */
struct c0_slot {
	struct m0_clovis_op *op;
	struct m0_indexvec ext;
	struct m0_bufvec data;
	uint64_t bytes;
	bool is_running;
};
int c0_slot_init(struct c0_slot *slot, uint64_t bytes_max);
void c0_slot_fini(struct c0_slot *slot);
/* Launches a read or write of `bytes` bytes (a multiple of 4096) at `offset`; 0 or why not. */
int c0_slot_launch(struct c0_slot *slot, struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, uint64_t offset, uint64_t bytes);
/* Waits for it; its outcome. */
int c0_slot_wait(struct c0_slot *slot);
/* Bytes of one operation under the given flags. */
uint64_t c0_op_bytes(const struct c0 *c0);

#endif
