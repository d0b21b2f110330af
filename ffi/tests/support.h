/*
 * What the test programs share: a configuration from the command line (LOCAL HA), a check that names its place, and short forms of
 * making, launching and ending operations. Programs print nothing if all went well and exit with 0.
 */
#ifndef CLOVIS_TEST_SUPPORT_H
#define CLOVIS_TEST_SUPPORT_H

#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "clovis/clovis_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)
#define CHECK_EQ(found, wanted) \
	do { \
		long long found_ = (long long)(found), wanted_ = (long long)(wanted); \
		if (found_ != wanted_) { \
			fprintf(stderr, "%s:%d: %s is %lld, not %s (%lld)\n", __FILE__, __LINE__, #found, found_, #wanted, wanted_); \
			exit(1); \
		} \
	} while (0)

enum { BLOCK = 4096 };
#define OVER M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED)

static struct m0_clovis_config test_config;
static struct m0_idx_dix_config test_dix;
static struct m0_clovis *test_instance;
static struct m0_clovis_container test_container;
static struct m0_clovis_realm *test_realm;

static inline void config_fill(struct m0_clovis_config *config, const char *local, const char *ha)
{
	memset(config, 0, sizeof *config);
	test_dix.kc_create_meta = false;
	config->cc_is_oostore = true;
	config->cc_local_addr = local;
	config->cc_ha_addr = ha;
	config->cc_profile = "0x7000000000000001:0";
	config->cc_process_fid = "<0x7200000000000000:0>";
	config->cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	config->cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	config->cc_layout_id = 1;
	config->cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	config->cc_idx_service_conf = &test_dix;
}

static inline void test_begin(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "%s LOCAL HA\n", argv[0]);
		exit(2);
	}
	config_fill(&test_config, argv[1], argv[2]);
	CHECK_EQ(m0_clovis_init(&test_instance, &test_config, true), 0);
	CHECK(test_instance != NULL);
	m0_clovis_container_init(&test_container, NULL, &M0_CLOVIS_UBER_REALM, test_instance);
	CHECK_EQ(test_container.co_realm.re_entity.en_sm.sm_rc, 0);
	test_realm = &test_container.co_realm;
}

static inline void test_end(void)
{
	m0_clovis_fini(test_instance, true);
}

static inline struct m0_uint128 test_id(uint64_t lo)
{
	struct m0_uint128 id = {0xc10, lo};

	return id;
}

/* Launches one operation, waits for its end, gives it back; returns m0_clovis_rc, and op_rc through `outcome` (may be NULL). */
static inline int op_run(struct m0_clovis_op *op, int *outcome)
{
	int rc;

	m0_clovis_op_launch(&op, 1);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, m0_time_from_now(60, 0)), 0);
	rc = m0_clovis_rc(op);
	CHECK_EQ(rc, op->op_sm.sm_rc);
	if (outcome != NULL)
		*outcome = op->op_rc;
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	return rc;
}

/* Makes the object and leaves it open. */
static inline void object_create(struct m0_clovis_obj *obj, struct m0_uint128 id, uint64_t layout_id)
{
	struct m0_clovis_op *op = NULL;
	int outcome;

	m0_clovis_obj_init(obj, test_realm, &id, layout_id);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj->ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &outcome), 0);
	CHECK_EQ(outcome, 0);
	CHECK_EQ(obj->ob_entity.en_sm.sm_state, M0_CLOVIS_ES_OPEN);
}

static inline void object_delete(struct m0_clovis_obj *obj)
{
	struct m0_clovis_op *op = NULL;
	int outcome;

	CHECK_EQ(m0_clovis_entity_delete(&obj->ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &outcome), 0);
	CHECK_EQ(outcome, 0);
	m0_clovis_entity_fini(&obj->ob_entity);
}

/* Vectors of one extent and one segment. */
struct io {
	struct m0_indexvec ext;
	struct m0_bufvec data;
	struct m0_bufvec attr;
};

static inline void io_alloc(struct io *io, uint32_t blocks, m0_bcount_t block, m0_bindex_t start)
{
	uint32_t i;

	CHECK_EQ(m0_indexvec_alloc(&io->ext, blocks), 0);
	CHECK_EQ(m0_bufvec_alloc(&io->data, blocks, block), 0);
	CHECK_EQ(m0_bufvec_alloc(&io->attr, blocks, 1), 0);
	for (i = 0; i < blocks; ++i) {
		io->ext.iv_index[i] = start + i * block;
		io->ext.iv_vec.v_count[i] = block;
		io->attr.ov_vec.v_count[i] = 0;
	}
}

static inline void io_free(struct io *io)
{
	m0_indexvec_free(&io->ext);
	m0_bufvec_free(&io->data);
	m0_bufvec_free(&io->attr);
}

static inline void io_fill(struct io *io, unsigned seed)
{
	uint32_t i;
	m0_bcount_t j;

	for (i = 0; i < io->data.ov_vec.v_nr; ++i)
		for (j = 0; j < io->data.ov_vec.v_count[i]; ++j)
			((unsigned char *)io->data.ov_buf[i])[j] = (unsigned char)(seed + i * 31 + j * 7 + (j >> 8));
}

static inline bool io_is_filled(const struct io *io, unsigned seed)
{
	uint32_t i;
	m0_bcount_t j;

	for (i = 0; i < io->data.ov_vec.v_nr; ++i)
		for (j = 0; j < io->data.ov_vec.v_count[i]; ++j)
			if (((unsigned char *)io->data.ov_buf[i])[j] != (unsigned char)(seed + i * 31 + j * 7 + (j >> 8)))
				return false;
	return true;
}

static inline bool io_is_zeros(const struct io *io)
{
	uint32_t i;
	m0_bcount_t j;

	for (i = 0; i < io->data.ov_vec.v_nr; ++i)
		for (j = 0; j < io->data.ov_vec.v_count[i]; ++j)
			if (((unsigned char *)io->data.ov_buf[i])[j] != 0)
				return false;
	return true;
}

static inline int io_run(struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, struct io *io)
{
	struct m0_clovis_op *op = NULL;

	CHECK_EQ(m0_clovis_obj_op(obj, opcode, &io->ext, &io->data, &io->attr, 0, &op), 0);
	CHECK(op != NULL);
	return op_run(op, NULL);
}

#endif
