/* Threads that each write and read an object of their own, with ids out of text and buffers that are aligned. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <pthread.h>
#include <errno.h>
#include <inttypes.h>
#include "clovis/clovis.h"
#include "clovis/clovis_internal.h"
#include "clovis/clovis_idx.h"
#include "lib/thread.h"
#include "lib/memory.h"
#include "lib/trace.h"

#define NTHR 6
#define BS (256 * 1024)
#define NB 8
static struct m0_clovis *ci;
static struct m0_clovis_container cc;
static struct m0_clovis_realm ur;
static struct m0_clovis_config conf;
static struct m0_idx_dix_config dix;
struct arg {
	int id;
	int rc;
};

static int parse_id(const char *s, struct m0_uint128 *id)
{
	if (sscanf(s, "%" SCNx64 ":%" SCNx64, &id->u_hi, &id->u_lo) == 2)
		return 0;
	return sscanf(s, "%lx", &id->u_lo) == 1 ? 0 : -EINVAL;
}
static int entity_op(struct m0_clovis_entity *e, int what)
{
	struct m0_clovis_op *ops[1] = {NULL};
	int rc;
	switch (what) {
	case M0_CLOVIS_EO_CREATE:
		rc = m0_clovis_entity_create(NULL, e, &ops[0]);
		break;
	case M0_CLOVIS_EO_OPEN:
		rc = m0_clovis_entity_open(e, &ops[0]);
		break;
	case M0_CLOVIS_EO_DELETE:
		rc = m0_clovis_entity_delete(e, &ops[0]);
		break;
	default:
		return -EINVAL;
	}
	if (rc != 0)
		return rc;
	m0_clovis_op_launch(ops, ARRAY_SIZE(ops));
	rc = m0_clovis_op_wait(ops[0], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), m0_time_from_now(30, 0));
	if (rc == 0)
		rc = ops[0]->op_sm.sm_rc;
	if (rc == 0)
		rc = ops[0]->op_rc;
	m0_clovis_op_fini(ops[0]);
	m0_clovis_op_free(ops[0]);
	return rc;
}
static void *worker(void *p)
{
	struct arg *a = p;
	struct m0_thread mthread;
	struct m0_clovis_obj obj;
	struct m0_uint128 id;
	char s[64];
	struct m0_indexvec ext;
	struct m0_bufvec data, attr;
	struct m0_clovis_op *op;
	int i, round;
	memset(&mthread, 0, sizeof mthread);
	m0_thread_adopt(&mthread, ci->m0c_mero);
	snprintf(s, sizeof s, "1f:%x", 0x200000 + a->id);
	parse_id(s, &id);
	m0_clovis_obj_init(&obj, &ur, &id, m0_clovis_obj_unit_size_to_layout_id(4096 << (a->id % 3)));
	a->rc = entity_op(&obj.ob_entity, M0_CLOVIS_EO_CREATE);
	if (a->rc)
		goto out;
	for (round = 0; round < 5; round++) {
		m0_indexvec_alloc(&ext, NB);
		m0_bufvec_alloc_aligned(&data, NB, BS, 12);
		m0_bufvec_alloc(&attr, NB, 1);
		for (i = 0; i < NB; i++) {
			ext.iv_index[i] = (uint64_t)(round * NB + i) * BS;
			ext.iv_vec.v_count[i] = BS;
			attr.ov_vec.v_count[i] = 0;
			memset(data.ov_buf[i], a->id * 10 + i + round, BS);
		}
		op = NULL;
		a->rc = m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &ext, &data, &attr, 0, &op);
		if (a->rc)
			goto out;
		m0_clovis_op_launch(&op, 1);
		a->rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER)
				?: m0_clovis_rc(op);
		m0_clovis_op_fini(op);
		m0_clovis_op_free(op);
		op = NULL;
		if (a->rc)
			goto out;
		for (i = 0; i < NB; i++)
			memset(data.ov_buf[i], 0, BS);
		a->rc = m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &ext, &data, &attr, 0, &op);
		m0_clovis_op_launch(&op, 1);
		a->rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER)
				?: m0_clovis_rc(op);
		m0_clovis_op_fini(op);
		m0_clovis_op_free(op);
		for (i = 0; i < NB && !a->rc; i++)
			if (((unsigned char *)data.ov_buf[i])[BS - 1] != (unsigned char)(a->id * 10 + i + round))
				a->rc = -EIO;
		m0_indexvec_free(&ext);
		m0_bufvec_free_aligned(&data, 12);
		m0_bufvec_free(&attr);
		if (a->rc)
			goto out;
	}
	a->rc = entity_op(&obj.ob_entity, M0_CLOVIS_EO_DELETE);
out:
	m0_clovis_obj_fini(&obj);
	m0_thread_shun();
	return NULL;
}
int main(int argc, char **argv)
{
	pthread_t t[NTHR];
	struct arg a[NTHR];
	int i, rc;
	conf.cc_local_addr = argv[1];
	conf.cc_ha_addr = argv[2];
	conf.cc_profile = argv[3];
	conf.cc_process_fid = argv[4];
	conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	conf.cc_idx_service_conf = &dix;
	conf.cc_is_oostore = true;
	conf.cc_is_read_verify = true;
	if ((rc = m0_clovis_init(&ci, &conf, true)))
		return 1;
	m0_clovis_container_init(&cc, NULL, &M0_CLOVIS_UBER_REALM, ci);
	ur = cc.co_realm;
	for (i = 0; i < NTHR; i++) {
		a[i].id = i;
		pthread_create(&t[i], NULL, worker, &a[i]);
	}
	for (rc = i = 0; i < NTHR; i++) {
		pthread_join(t[i], NULL);
		printf("%d: %d\n", i, a[i].rc);
		rc |= a[i].rc;
	}
	m0_clovis_fini(ci, true);
	return rc != 0;
}
