/*
 * As programs of 2019 were written: an I/O layer of their own around vectors, callbacks that count down, foreign memory from malloc in a
 * bufvec, threads that adopt themselves, a mutex around what they share, ids from a generator, a check of each return value.
 */
#define M0_TRACE_SUBSYSTEM M0_TRACE_SUBSYS_CLOVIS
#include "lib/trace.h"
#include "clovis/clovis.h"
#include "clovis/clovis_internal.h"
#include "clovis/clovis_idx.h"
#include "helpers/ufid.h"
#include "lib/semaphore.h"
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_SIZE 4096
#define MAX_OPS 6

struct aio_op;
struct aio_group {
	int aog_nr, aog_left, aog_rc;
	struct m0_mutex aog_lock;
	struct m0_semaphore aog_sem;
	struct aio_op *aog_ops;
};

struct aio_op {
	struct aio_group *ao_group;
	struct m0_clovis_obj *ao_obj;
	struct m0_clovis_op *ao_op;
	struct m0_indexvec ao_ext;
	struct m0_bufvec ao_data;
	struct m0_bufvec ao_attr;
};

static struct m0_clovis *instance;
static struct m0_clovis_container container;
static struct m0_clovis_config conf;
static struct m0_idx_dix_config dix_conf;
static struct m0_ufid_generator generator;

static void group_done(struct m0_clovis_op *op, int rc)
{
	struct aio_op *aio = (struct aio_op *)op->op_datum;
	struct aio_group *group = aio->ao_group;

	m0_mutex_lock(&group->aog_lock);
	group->aog_rc = group->aog_rc ?: rc;
	if (--group->aog_left == 0)
		m0_semaphore_up(&group->aog_sem);
	m0_mutex_unlock(&group->aog_lock);
}

static void executed_cb(struct m0_clovis_op *op)
{
	M0_LOG(M0_DEBUG, "op %p executed", (void *)op);
}

static void stable_cb(struct m0_clovis_op *op)
{
	group_done(op, 0);
}

static void failed_cb(struct m0_clovis_op *op)
{
	M0_LOG(M0_ERROR, "op %p failed: %d", (void *)op, op->op_rc);
	group_done(op, m0_clovis_rc(op));
}

static struct m0_clovis_op_ops cbs;

static int vecs_setup(struct aio_op *aio, int blocks, m0_bindex_t *last, unsigned char fill)
{
	int i, rc;

	M0_ENTRY("blocks %d", blocks);
	rc = m0_indexvec_alloc(&aio->ao_ext, blocks);
	if (rc != 0)
		return M0_ERR(rc);
	/* Memory of the program's own. */
	rc = m0_bufvec_empty_alloc(&aio->ao_data, blocks);
	if (rc != 0)
		return M0_ERR(rc);
	rc = m0_bufvec_alloc(&aio->ao_attr, blocks, 1);
	if (rc != 0)
		return M0_ERR(rc);
	for (i = 0; i < blocks; ++i) {
		aio->ao_data.ov_buf[i] = malloc(BLOCK_SIZE);
		assert(aio->ao_data.ov_buf[i] != NULL);
		memset(aio->ao_data.ov_buf[i], fill + i, BLOCK_SIZE);
		aio->ao_data.ov_vec.v_count[i] = BLOCK_SIZE;
		aio->ao_ext.iv_index[i] = *last;
		aio->ao_ext.iv_vec.v_count[i] = BLOCK_SIZE;
		*last += BLOCK_SIZE;
		aio->ao_attr.ov_vec.v_count[i] = 0;
	}
	return M0_RC(0);
}

static int group_run(struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, bool check)
{
	struct aio_op ops[MAX_OPS];
	struct aio_group group = {MAX_OPS, MAX_OPS, 0, {{{{0}}}}, {{{{0}}}}, ops};
	struct m0_clovis_op *launched[MAX_OPS];
	m0_bindex_t last = 0;
	int i, j, rc = 0;

	memset(ops, 0, sizeof ops);
	m0_mutex_init(&group.aog_lock);
	m0_semaphore_init(&group.aog_sem, 0);
	for (i = 0; i < MAX_OPS && rc == 0; ++i) {
		ops[i].ao_group = &group;
		ops[i].ao_obj = obj;
		rc = vecs_setup(&ops[i], 1 + i, &last, check ? 0 : 10 * i);
		if (rc == 0)
			rc = m0_clovis_obj_op(obj, opcode, &ops[i].ao_ext, &ops[i].ao_data, &ops[i].ao_attr, 0, &ops[i].ao_op);
		if (rc == 0) {
			ops[i].ao_op->op_datum = &ops[i];
			m0_clovis_op_setup(ops[i].ao_op, &cbs, 0);
			launched[i] = ops[i].ao_op;
		}
	}
	M0_ASSERT(rc == 0);
	m0_clovis_op_launch(launched, MAX_OPS);
	m0_semaphore_down(&group.aog_sem);
	rc = group.aog_rc;
	for (i = 0; i < MAX_OPS; ++i) {
		m0_clovis_op_fini(ops[i].ao_op);
		m0_clovis_op_free(ops[i].ao_op);
		for (j = 0; check && j < 1 + i; ++j)
			M0_ASSERT(m0_forall(k, BLOCK_SIZE, ((unsigned char *)ops[i].ao_data.ov_buf[j])[k] == 10 * i + j));
		m0_indexvec_free(&ops[i].ao_ext);
		m0_bufvec_free(&ops[i].ao_data);
		m0_bufvec_free(&ops[i].ao_attr);
	}
	m0_semaphore_fini(&group.aog_sem);
	m0_mutex_fini(&group.aog_lock);
	return rc;
}

static int entity_run(struct m0_clovis_op *op)
{
	int rc;

	m0_clovis_op_launch(&op, 1);
	rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER) ?: m0_clovis_rc(op) ?: op->op_rc;
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	return rc;
}

static void *writer(void *arg)
{
	struct m0_thread *mthread;
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct m0_uint128 id;
	long rc;

	(void)arg;
	M0_ALLOC_PTR(mthread);
	M0_ASSERT(mthread != NULL);
	memset(mthread, 0, sizeof *mthread);
	rc = m0_thread_adopt(mthread, instance->m0c_mero);
	M0_ASSERT(rc == 0);
	rc = m0_ufid_next(&generator, 1, &id);
	M0_ASSERT(rc == 0 && m0_uint128_cmp(&M0_CLOVIS_ID_APP, &id) < 0);
	memset(&obj, 0, sizeof obj);
	m0_clovis_obj_init(&obj, &container.co_realm, &id, 9);
	rc = m0_clovis_entity_create(NULL, &obj.ob_entity, &op) ?: entity_run(op);
	M0_ASSERT(rc == 0);
	rc = group_run(&obj, M0_CLOVIS_OC_WRITE, false) ?: group_run(&obj, M0_CLOVIS_OC_READ, true);
	op = NULL;
	rc = rc ?: m0_clovis_entity_delete(&obj.ob_entity, &op) ?: entity_run(op);
	m0_clovis_entity_fini(&obj.ob_entity);
	m0_thread_shun();
	m0_free(mthread);
	return (void *)rc;
}

int main(int argc, char **argv)
{
	pthread_t threads[3];
	struct m0_fid process;
	void *result;
	int i, rc;

	m0_trace_set_mmapped_buffer(false);
	assert(argc >= 3);
	conf.cc_is_oostore = true;
	conf.cc_is_read_verify = true;
	conf.cc_is_addb_init = false;
	conf.cc_local_addr = argv[1];
	conf.cc_ha_addr = argv[2];
	conf.cc_profile = "0x7000000000000001:0";
	conf.cc_process_fid = "0x7200000000000001:64";
	conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	conf.cc_layout_id = 0;
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	conf.cc_idx_service_conf = &dix_conf;
	cbs.oop_executed = executed_cb;
	cbs.oop_stable = stable_cb;
	cbs.oop_failed = failed_cb;
	rc = m0_clovis_init(&instance, &conf, true);
	if (rc != 0) {
		fprintf(stderr, "failed to initialise Clovis: %d\n", rc);
		return EXIT_FAILURE;
	}
	m0_clovis_process_fid(instance, &process);
	M0_ASSERT(process.f_container == 0x7200000000000001ULL && process.f_key == 64);
	m0_clovis_container_init(&container, NULL, &M0_CLOVIS_UBER_REALM, instance);
	M0_ASSERT(container.co_realm.re_entity.en_sm.sm_rc == 0);
	rc = m0_ufid_init(instance, &generator);
	M0_ASSERT(rc == 0);
	for (i = 0; i < 3; ++i) {
		rc = pthread_create(&threads[i], NULL, writer, NULL);
		assert(rc == 0);
	}
	for (i = 0; i < 3; ++i) {
		pthread_join(threads[i], &result);
		rc = rc ?: (int)(long)result;
	}
	m0_ufid_fini(&generator);
	m0_clovis_fini(instance, true);
	return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
