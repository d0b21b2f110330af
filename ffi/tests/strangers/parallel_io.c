/* As the I/O back ends of parallel benchmarks were written: transfers cut into several operations, callbacks that
 * count, a thread that adopts itself. */
#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>
#include <assert.h>
#include <stdbool.h>
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "clovis/clovis_internal.h"
#include "lib/thread.h"

struct aio_cb {
	struct m0_clovis_op *op;
	struct m0_indexvec ext;
	struct m0_bufvec data;
	struct m0_bufvec attr;
	int done;
};

static struct m0_clovis *cinst = NULL;
static struct m0_clovis_container ccont;
static struct m0_clovis_realm crealm;
static struct m0_clovis_config conf;
static struct m0_idx_dix_config dix;
static int oid_lo = 0x7777;
static struct m0_mutex lock;
static int nr_exec, nr_stable, nr_fail;

static void cb_exec(struct m0_clovis_op *op)
{
	__sync_fetch_and_add(&nr_exec, 1);
}
static void cb_stable(struct m0_clovis_op *op)
{
	struct aio_cb *cb = op->op_datum;
	m0_mutex_lock(&lock);
	nr_stable++;
	cb->done = 1;
	m0_mutex_unlock(&lock);
}
static void cb_fail(struct m0_clovis_op *op)
{
	nr_fail++;
}

static const struct m0_clovis_op_ops ops_cb = {.oop_executed = cb_exec, .oop_failed = cb_fail, .oop_stable = cb_stable};

static int CLOVIS_Init(char **av)
{
	conf.cc_is_oostore = 1;
	conf.cc_is_read_verify = 0;
	conf.cc_is_addb_init = false;
	conf.cc_local_addr = av[1];
	conf.cc_ha_addr = av[2];
	conf.cc_profile = av[3];
	conf.cc_process_fid = av[4];
	conf.cc_tm_recv_queue_min_len = 16;
	conf.cc_max_rpc_msg_size = 65536;
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	dix.kc_create_meta = false;
	conf.cc_idx_service_conf = &dix;
	int rc = m0_clovis_init(&cinst, &conf, true);
	if (rc) {
		fprintf(stderr, "init %d\n", rc);
		return rc;
	}
	m0_clovis_container_init(&ccont, NULL, &M0_CLOVIS_UBER_REALM, cinst);
	if (ccont.co_realm.re_entity.en_sm.sm_rc != 0)
		return ccont.co_realm.re_entity.en_sm.sm_rc;
	crealm = ccont.co_realm;
	return 0;
}

static int set_layout(m0_bcount_t block)
{
	int lid = m0_clovis_obj_unit_size_to_layout_id(block);
	if (m0_clovis_obj_layout_id_to_unit_size(lid) != (int)block)
		return -1;
	return lid;
}

static void *CLOVIS_Create(void)
{
	struct m0_uint128 id = M0_UINT128(0, 0);
	struct m0_clovis_obj *obj = NULL;
	struct m0_clovis_op *ops[1] = {NULL};
	int rc;

	id.u_hi = 0x100;
	id.u_lo = oid_lo;
	M0_ALLOC_PTR(obj);
	if (!obj)
		return NULL;
	m0_clovis_obj_init(obj, &crealm, &id, set_layout(65536));
	rc = m0_clovis_entity_create(NULL, &obj->ob_entity, &ops[0]);
	assert(rc == 0);
	m0_clovis_op_launch(ops, ARRAY_SIZE(ops));
	rc = m0_clovis_op_wait(ops[0], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), m0_time_from_now(5, 0));
	assert(rc == 0);
	if (ops[0]->op_sm.sm_rc != 0) {
		fprintf(stderr, "create: %d\n", ops[0]->op_sm.sm_rc);
		return NULL;
	}
	m0_clovis_op_fini(ops[0]);
	m0_clovis_op_free(ops[0]);
	return obj;
}

static int xfer_aio(struct m0_clovis_obj *obj, char *buf, size_t len, off_t off, int rw)
{
	enum { NOPS = 8 };
	struct aio_cb cbs[NOPS];
	struct m0_clovis_op *op[NOPS] = {NULL};
	size_t per = len / NOPS, blk = 4096;
	int i;
	unsigned j;
	memset(cbs, 0, sizeof cbs);
	for (i = 0; i < NOPS; i++) {
		uint32_t nr = per / blk;
		if (m0_indexvec_alloc(&cbs[i].ext, nr) || m0_bufvec_empty_alloc(&cbs[i].data, nr) ||
		    m0_bufvec_alloc(&cbs[i].attr, nr, 1))
			return -1;
		for (j = 0; j < nr; j++) {
			cbs[i].ext.iv_index[j] = off + i * per + j * blk;
			cbs[i].ext.iv_vec.v_count[j] = blk;
			cbs[i].attr.ov_vec.v_count[j] = 0;
			cbs[i].data.ov_vec.v_count[j] = blk;
			cbs[i].data.ov_buf[j] = buf + i * per + j * blk;
		}
		m0_clovis_obj_op(obj, rw ? M0_CLOVIS_OC_WRITE : M0_CLOVIS_OC_READ, &cbs[i].ext, &cbs[i].data,
				 &cbs[i].attr, 0, &op[i]);
		op[i]->op_datum = &cbs[i];
		m0_clovis_op_setup(op[i], &ops_cb, 0);
	}
	m0_clovis_op_launch(op, NOPS);
	for (i = 0; i < NOPS; i++) {
		int rc = m0_clovis_op_wait(op[i], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER);
		if (rc || m0_clovis_rc(op[i]))
			return -1;
		m0_clovis_op_fini(op[i]);
		m0_clovis_op_free(op[i]);
		m0_indexvec_free(&cbs[i].ext);
		m0_bufvec_free2(&cbs[i].data);
		m0_bufvec_free(&cbs[i].attr);
		if (!cbs[i].done)
			return -2;
	}
	return 0;
}

static void *thr(void *arg)
{
	struct m0_thread *mt = calloc(1, sizeof *mt);
	int rc = m0_thread_adopt(mt, cinst->m0c_mero);
	assert(rc == 0);
	struct m0_clovis_obj *obj = arg;
	size_t len = 1 << 20;
	char *b = NULL;
	if (posix_memalign((void **)&b, 4096, len))
		abort();
	memset(b, 'x', len);
	rc = xfer_aio(obj, b, len, 4 << 20, 1);
	free(b);
	m0_thread_shun();
	free(mt);
	return (void *)(long)rc;
}

int main(int argc, char **argv)
{
	struct m0_clovis_obj *obj;
	size_t len = 2 << 20, i;
	char *w, *r;
	void *ret;
	pthread_t t;
	struct m0_clovis_op *op = NULL;

	m0_mutex_init(&lock);
	if (CLOVIS_Init(argv))
		return 1;
	obj = CLOVIS_Create();
	if (!obj)
		return 2;
	w = malloc(len);
	r = m0_alloc_aligned(len, 12);
	for (i = 0; i < len; i++)
		w[i] = i * 7 + (i >> 12);
	if (xfer_aio(obj, w, len, 0, 1))
		return 3;
	if (xfer_aio(obj, r, len, 0, 0))
		return 4;
	if (memcmp(w, r, len))
		return 5;
	pthread_create(&t, NULL, thr, obj);
	pthread_join(t, &ret);
	if (ret)
		return 6;
	if (nr_exec != 24 || nr_stable != 24 || nr_fail)
		return 7;
	m0_clovis_entity_delete(&obj->ob_entity, &op);
	m0_clovis_op_launch(&op, 1);
	m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	m0_clovis_entity_fini(&obj->ob_entity);
	m0_free(obj);
	free(w);
	m0_free_aligned(r, len, 12);
	m0_clovis_fini(cinst, true);
	return 0;
}
