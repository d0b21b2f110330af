/* As the first programs were written: no layout id, no pool. With a later call between them. */
#include <clovis/clovis.h>
#include <clovis/clovis_idx.h>
static struct m0_clovis *m;
static struct m0_clovis_container uber;
static struct m0_clovis_config conf;
static struct m0_idx_dix_config dix;
static int go(struct m0_clovis_op *op)
{
	int rc;
	m0_clovis_op_launch(&op, 1);
	rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER);
	rc = rc ? rc : m0_clovis_rc(op);
	rc = rc ? rc : op->op_rc;
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	return rc;
}
int main(int argc, char **argv)
{
	struct m0_clovis_obj o, o2;
	struct m0_clovis_op *op = NULL;
	struct m0_uint128 id = {0x42, 0x42};
	int rc;
	(void)argc;
	conf.cc_local_addr = argv[1];
	conf.cc_ha_addr = argv[2];
	conf.cc_profile = argv[3];
	conf.cc_process_fid = argv[4];
	conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	conf.cc_idx_service_conf = &dix;
	rc = m0_clovis_init(&m, &conf, true);
	M0_ASSERT(rc == 0);
	m0_clovis_container_init(&uber, NULL, &M0_CLOVIS_UBER_REALM, m);
	m0_clovis_obj_init(&o, &uber.co_realm, &id);
	m0_clovis_entity_create(&o.ob_entity, &op);
	M0_ASSERT(go(op) == 0);
	op = NULL;
	m0_clovis_obj_init(&o2, &uber.co_realm, &(struct m0_uint128){0x42, 0x42}, m0_clovis_layout_id(m));
	rc = m0_clovis_entity_create(NULL, &o2.ob_entity, &op);
	M0_ASSERT(rc == 0 && go(op) == -EEXIST);
	op = NULL;
	rc = m0_clovis_entity_delete(&o.ob_entity, &op);
	M0_ASSERT(rc == 0 && go(op) == 0);
	op = NULL;
	M0_ASSERT(m0_clovis_entity_open(&o2.ob_entity, &op) == 0 && go(op) == -ENOENT);
	M0_ASSERT(o2.ob_entity.en_sm.sm_state == M0_CLOVIS_ES_INIT);
	m0_clovis_entity_fini(&o.ob_entity);
	m0_clovis_obj_fini(&o2);
	m0_clovis_fini(m, true);
	return 0;
}
