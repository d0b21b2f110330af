/* Objects from making to deleting: states, both return codes, extents of all kinds, block shifts, layouts, alloc and free. */
#include "support.h"

static void outcomes_of_entities(void)
{
	struct m0_clovis_obj obj, twin;
	struct m0_clovis_op *op = NULL;
	struct m0_uint128 id = test_id(1), missing = test_id(2);
	int outcome;

	/* Opening what is not there: carried out, and -ENOENT came out; the entity stays as it was. */
	m0_clovis_obj_init(&obj, test_realm, &missing, 1);
	CHECK_EQ(obj.ob_entity.en_sm.sm_state, M0_CLOVIS_ES_INIT);
	CHECK_EQ(obj.ob_attr.oa_bshift, 12);
	CHECK(m0_uint128_eq(&obj.ob_entity.en_id, &missing));
	CHECK_EQ(m0_clovis_entity_open(&obj.ob_entity, &op), 0);
	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_INITIALISED);
	CHECK_EQ(op->op_code, M0_CLOVIS_EO_OPEN);
	CHECK(op->op_entity == &obj.ob_entity);
	m0_clovis_op_launch(&op, 1);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, M0_TIME_NEVER), 0);
	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_STABLE);
	CHECK_EQ(op->op_sm.sm_rc, 0);
	CHECK_EQ(m0_clovis_rc(op), 0);
	CHECK_EQ(op->op_rc, -ENOENT);
	CHECK_EQ(obj.ob_entity.en_sm.sm_state, M0_CLOVIS_ES_INIT);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);

	op = NULL;
	CHECK_EQ(m0_clovis_entity_delete(&obj.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &outcome), 0);
	CHECK_EQ(outcome, -ENOENT);
	m0_clovis_obj_fini(&obj);

	/* Made once, it cannot be made again. */
	object_create(&obj, id, 1);
	CHECK_EQ(obj.ob_attr.oa_layout_id, 1);
	CHECK(m0_fid_is_set(&obj.ob_attr.oa_pool) && m0_fid_is_set(&obj.ob_attr.oa_pver));
	m0_clovis_obj_init(&twin, test_realm, &id, 3);
	op = NULL;
	CHECK_EQ(m0_clovis_entity_create(&obj.ob_attr.oa_pool, &twin.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &outcome), 0);
	CHECK_EQ(outcome, -EEXIST);
	CHECK_EQ(twin.ob_entity.en_sm.sm_state, M0_CLOVIS_ES_INIT);
	op = NULL;
	CHECK_EQ(m0_clovis_entity_open(&twin.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &outcome), 0);
	CHECK_EQ(outcome, 0);
	CHECK_EQ(twin.ob_entity.en_sm.sm_state, M0_CLOVIS_ES_OPEN);
	CHECK_EQ(twin.ob_attr.oa_layout_id, 1);
	m0_clovis_obj_fini(&twin);
	object_delete(&obj);
}

static void bytes_come_back(void)
{
	static const struct {
		uint32_t blocks;
		m0_bcount_t block;
		m0_bindex_t start;
		uint64_t layout_id;
	} cases[] = {
		{1, BLOCK, 0, 1}, {10, BLOCK, 5 * BLOCK, 1}, {3, 64 << 10, 0, 5}, {2, 1 << 20, 1 << 20, 9},
		{1, 40 << 20, 0, 9}, {100, BLOCK, 0, 0}, {7, 3 * BLOCK, 11 * BLOCK, 14},
	};
	struct m0_clovis_obj obj;
	struct io io;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); ++i) {
		object_create(&obj, test_id(100 + i), cases[i].layout_id);
		io_alloc(&io, cases[i].blocks, cases[i].block, cases[i].start);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
		CHECK(io_is_zeros(&io));
		io_fill(&io, 5);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
		CHECK(io_is_filled(&io, 5));
		io_fill(&io, 99);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
		CHECK(io_is_filled(&io, 5));
		io_free(&io);
		object_delete(&obj);
	}
}

/* Extents in any order, apart from each other, and data cut in other places than they. */
static void scattered_extents(void)
{
	enum { EXTENTS = 60, SEGMENTS = 7 };
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct m0_indexvec ext;
	struct m0_bufvec data;
	unsigned char *all = malloc(EXTENTS * BLOCK), *back = malloc(EXTENTS * BLOCK);
	size_t cut[SEGMENTS] = {1, 4095, 5000, 100, 60000, 3, 0};
	size_t at = 0;
	int i;

	CHECK(all != NULL && back != NULL);
	for (i = 0; i < EXTENTS * BLOCK; ++i)
		all[i] = (unsigned char)(i * 13 + (i >> 12));
	object_create(&obj, test_id(200), 1);
	CHECK_EQ(m0_indexvec_alloc(&ext, EXTENTS), 0);
	for (i = 0; i < EXTENTS; ++i) {
		ext.iv_index[i] = (m0_bindex_t)((i * 37) % 61) * 2 * BLOCK;
		ext.iv_vec.v_count[i] = BLOCK;
	}
	CHECK_EQ(m0_bufvec_empty_alloc(&data, SEGMENTS), 0);
	for (i = 0; i < SEGMENTS; ++i) {
		if (i == SEGMENTS - 1)
			cut[i] = EXTENTS * BLOCK - at;
		data.ov_buf[i] = all + at;
		data.ov_vec.v_count[i] = cut[i];
		at += cut[i];
	}
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &ext, &data, NULL, 0, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	for (at = 0, i = 0; i < SEGMENTS; at += cut[i], ++i)
		data.ov_buf[i] = back + at;
	op = NULL;
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &ext, &data, NULL, 0, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	CHECK(memcmp(all, back, EXTENTS * BLOCK) == 0);
	m0_bufvec_free2(&data);
	m0_indexvec_free(&ext);
	object_delete(&obj);
	free(all);
	free(back);
}

/* Blocks of 512 bytes: neighbours in a device's block stay as they were. */
static void small_blocks(void)
{
	struct m0_clovis_obj obj;
	struct io io, whole;
	int i;

	object_create(&obj, test_id(300), 1);
	io_alloc(&whole, 1, 4 * BLOCK, 0);
	io_fill(&whole, 1);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &whole), 0);
	obj.ob_attr.oa_bshift = 9;
	io_alloc(&io, 1, 512, 512 * 3);
	io_fill(&io, 77);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	memcpy((char *)whole.data.ov_buf[0] + 512 * 3, io.data.ov_buf[0], 512);
	{
		struct io found;

		io_alloc(&found, 1, 4 * BLOCK, 0);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &found), 0);
		CHECK(memcmp(found.data.ov_buf[0], whole.data.ov_buf[0], 4 * BLOCK) == 0);
		io_free(&found);
	}
	/* Across a block's end, and behind the object's. */
	io.ext.iv_index[0] = BLOCK * 4 - 512 * 0;
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	io.ext.iv_index[0] = BLOCK * 9 + 512;
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	for (i = 0; i < 3; ++i) {
		static const m0_bindex_t at[3] = {512 * 3, BLOCK * 4, BLOCK * 9 + 512};

		io.ext.iv_index[0] = at[i];
		memset(io.data.ov_buf[0], 0, 512);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
		CHECK(io_is_filled(&io, 77));
	}
	io.ext.iv_index[0] = BLOCK * 9;
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
	CHECK(io_is_zeros(&io));
	io_free(&io);
	io_free(&whole);
	object_delete(&obj);
}

static void alloc_and_free(void)
{
	struct m0_clovis_obj obj;
	struct io io, part;

	object_create(&obj, test_id(400), 1);
	io_alloc(&io, 1, 64 * BLOCK, 0);
	io_fill(&io, 3);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	/* What is allocated and was written stays; what was not becomes zeros. */
	io_alloc(&part, 1, 80 * BLOCK, 0);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_ALLOC, &part), 0);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
	CHECK(io_is_filled(&io, 3));
	io_free(&part);
	io_alloc(&part, 1, 16 * BLOCK, 64 * BLOCK);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &part), 0);
	CHECK(io_is_zeros(&part));
	io_free(&part);
	/* Freed extents are zeros; their neighbours stay. */
	io_alloc(&part, 1, 21 * BLOCK, 3 * BLOCK);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_FREE, &part), 0);
	memset((char *)io.data.ov_buf[0] + 3 * BLOCK, 0, 21 * BLOCK);
	{
		struct io found;

		io_alloc(&found, 1, 64 * BLOCK, 0);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &found), 0);
		CHECK(memcmp(found.data.ov_buf[0], io.data.ov_buf[0], 64 * BLOCK) == 0);
		io_free(&found);
	}
	io_free(&part);
	io_free(&io);
	object_delete(&obj);
}

static void attributes_of_blocks(void)
{
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct io io;
	struct m0_bufvec sums;
	uint32_t first;
	int i;

	object_create(&obj, test_id(500), 1);
	io_alloc(&io, 4, BLOCK, 0);
	CHECK_EQ(m0_bufvec_alloc(&sums, 4, 4), 0);
	memset(io.data.ov_buf[0], 0, BLOCK);
	io_fill(&io, 8);
	memset(io.data.ov_buf[2], 0, BLOCK);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &io.ext, &io.data, &sums, M0_CLOVIS_BLOCK_ATTR_CRC32C, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	CHECK_EQ(*(uint32_t *)sums.ov_buf[2], 0x98f94189); /* 4096 zeros */
	op = NULL;
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &sums, M0_CLOVIS_BLOCK_ATTR_CRC32C, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	first = *(uint32_t *)sums.ov_buf[0];
	*(uint32_t *)sums.ov_buf[0] = first ^ 1;
	op = NULL;
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &sums, M0_CLOVIS_BLOCK_ATTR_CRC32C, &op), 0);
	CHECK_EQ(op_run(op, &i), -EILSEQ);
	CHECK_EQ(i, -EILSEQ);
	m0_bufvec_free(&sums);
	io_free(&io);
	object_delete(&obj);
}

/* Two handles of one object, each of which writes behind the end that the other knows. */
static void two_handles(void)
{
	struct m0_clovis_obj one, other;
	struct m0_clovis_op *op = NULL;
	struct io io;
	struct m0_uint128 id = test_id(600);
	unsigned i;

	object_create(&one, id, 1);
	m0_clovis_obj_init(&other, test_realm, &id, 0);
	CHECK_EQ(m0_clovis_entity_open(&other.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	io_alloc(&io, 1, BLOCK, 0);
	for (i = 0; i < 12; ++i) {
		io.ext.iv_index[0] = i * BLOCK;
		io_fill(&io, i);
		CHECK_EQ(io_run(i % 2 == 0 ? &one : &other, M0_CLOVIS_OC_WRITE, &io), 0);
	}
	for (i = 0; i < 12; ++i) {
		io.ext.iv_index[0] = i * BLOCK;
		CHECK_EQ(io_run(i % 2 == 0 ? &other : &one, M0_CLOVIS_OC_READ, &io), 0);
		CHECK(io_is_filled(&io, i));
	}
	io_free(&io);
	m0_clovis_obj_fini(&other);
	object_delete(&one);
}

int main(int argc, char **argv)
{
	test_begin(argc, argv);
	outcomes_of_entities();
	bytes_come_back();
	scattered_extents();
	small_blocks();
	alloc_and_free();
	attributes_of_blocks();
	two_handles();
	test_end();
	return 0;
}
