/* Everything that a program can get wrong: -EINVAL or a FAILED operation, a line on standard error, and the process lives. */
#include "support.h"

static void bad_configurations(const char *local, const char *ha)
{
	struct m0_clovis_config config;
	struct m0_clovis *instance = (struct m0_clovis *)&config;

#define REFUSED(change) \
	do { \
		config_fill(&config, local, ha); \
		change; \
		CHECK(m0_clovis_init(&instance, &config, true) < 0); \
		CHECK(instance == NULL); \
	} while (0)

	CHECK_EQ(m0_clovis_init(NULL, NULL, true), -EINVAL);
	CHECK_EQ(m0_clovis_init(&instance, NULL, true), -EINVAL);
	REFUSED(config.cc_local_addr = NULL);
	REFUSED(config.cc_local_addr = "");
	REFUSED(config.cc_local_addr = "nonsense");
	REFUSED(config.cc_ha_addr = NULL);
	REFUSED(config.cc_ha_addr = "127.0.0.1");
	REFUSED(config.cc_process_fid = "");
	REFUSED(config.cc_process_fid = "<0x7000000000000000:0>"); /* a profile's */
	REFUSED(config.cc_profile = NULL);
	REFUSED(config.cc_profile = "0x7000000000000077:0"); /* not the cluster's */
	REFUSED(config.cc_tm_recv_queue_min_len = 0);
	REFUSED(config.cc_max_rpc_msg_size = 0);
	REFUSED(config.cc_local_addr = "127.0.0.1@o2ib:12345:44:301");
#undef REFUSED
}

static void bad_entities(void)
{
	struct m0_clovis_container container;
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct m0_fid pool = M0_FID_TINIT('o', 77, 77);
	struct m0_uint128 id = test_id(1), low = {0, 17}, high = {1ULL << 56, 1};

	m0_clovis_container_init(&container, NULL, &id, test_instance);
	CHECK(container.co_realm.re_entity.en_sm.sm_rc < 0);
	m0_clovis_container_init(&container, NULL, NULL, test_instance);
	m0_clovis_container_init(NULL, NULL, &M0_CLOVIS_UBER_REALM, test_instance);
	m0_clovis_container_init(&container, NULL, &M0_CLOVIS_UBER_REALM, NULL);
	CHECK(container.co_realm.re_entity.en_sm.sm_rc < 0);

	m0_clovis_obj_init(NULL, test_realm, &id, 1);
	m0_clovis_obj_init(&obj, NULL, &id, 1);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, &container.co_realm, &id, 1);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, test_realm, NULL, 1);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, test_realm, &low, 1);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, test_realm, &high, 1);
	CHECK_EQ(m0_clovis_entity_open(&obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, test_realm, &M0_CLOVIS_ID_APP, 1);
	CHECK_EQ(m0_clovis_entity_open(&obj.ob_entity, &op), -EINVAL);

	m0_clovis_obj_init(&obj, test_realm, &id, 15);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);
	m0_clovis_obj_init(&obj, test_realm, &id, 1);
	CHECK_EQ(m0_clovis_entity_create(&pool, &obj.ob_entity, &op), -EINVAL);
	CHECK_EQ(m0_clovis_entity_create(NULL, NULL, &op), -EINVAL);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, NULL), -EINVAL);
	CHECK_EQ(m0_clovis_entity_open(NULL, &op), -EINVAL);
	CHECK_EQ(m0_clovis_entity_delete(NULL, NULL), -EINVAL);
	CHECK(op == NULL);
	m0_clovis_entity_fini(NULL);
	m0_clovis_obj_fini(NULL);
	m0_clovis_obj_fini(&obj);
	/* After fini it is nothing any more. */
	CHECK_EQ(m0_clovis_entity_open(&obj.ob_entity, &op), -EINVAL);
	CHECK_EQ(m0_entity_type_is_valid(NULL), 0);
	CHECK_EQ(m0_entity_type_is_valid(&test_container.co_realm.re_entity), 1);
	CHECK_EQ(m0_clovis_entity_create(NULL, &test_container.co_realm.re_entity, &op), -EINVAL);
}

static void bad_io(void)
{
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct io io;
	struct m0_uint128 id = test_id(2);

#define REFUSED(change, restore) \
	do { \
		change; \
		CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), -EINVAL); \
		CHECK(op == NULL); \
		restore; \
	} while (0)

	io_alloc(&io, 2, BLOCK, 0);
	/* Not open yet. */
	m0_clovis_obj_init(&obj, test_realm, &id, 1);
	REFUSED((void)0, (void)0);
	m0_clovis_obj_fini(&obj);
	object_create(&obj, id, 1);
	/* Open already. */
	CHECK_EQ(m0_clovis_entity_open(&obj.ob_entity, &op), -EINVAL);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), -EINVAL);

	REFUSED(io.ext.iv_index[0] = 100, io.ext.iv_index[0] = 0);
	REFUSED(io.ext.iv_vec.v_count[0] = 100, io.ext.iv_vec.v_count[0] = BLOCK);
	REFUSED(io.ext.iv_vec.v_count[0] = 2 * BLOCK, io.ext.iv_vec.v_count[0] = BLOCK);
	REFUSED(io.ext.iv_index[1] = ~(uint64_t)(BLOCK - 1), io.ext.iv_index[1] = BLOCK);
	REFUSED(io.ext.iv_vec.v_nr = 0, io.ext.iv_vec.v_nr = 2);
	REFUSED(io.data.ov_vec.v_nr = 1, io.data.ov_vec.v_nr = 2);
	REFUSED(io.data.ov_vec.v_count[1] = BLOCK / 2, io.data.ov_vec.v_count[1] = BLOCK);
	REFUSED(obj.ob_attr.oa_bshift = 8, obj.ob_attr.oa_bshift = 12);
	REFUSED(obj.ob_attr.oa_bshift = 64, obj.ob_attr.oa_bshift = 12);
	REFUSED(obj.ob_attr.oa_bshift = 13, obj.ob_attr.oa_bshift = 12);
	{
		void *kept = io.data.ov_buf[1];

		REFUSED(io.data.ov_buf[1] = NULL, io.data.ov_buf[1] = kept);
	}
#undef REFUSED
	CHECK_EQ(m0_clovis_obj_op(NULL, M0_CLOVIS_OC_READ, &io.ext, &io.data, &io.attr, 0, &op), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, NULL, &io.data, &io.attr, 0, &op), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &io.ext, NULL, &io.attr, 0, &op), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &io.ext, &io.data, &io.attr, 0, NULL), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &io.ext, &io.data, &io.attr, 1, &op), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, (enum m0_clovis_obj_opcode)99, &io.ext, &io.data, &io.attr, 0, &op), -EINVAL);
	CHECK_EQ(m0_clovis_obj_op(&obj, (enum m0_clovis_obj_opcode)M0_CLOVIS_IC_GET, &io.ext, &io.data, &io.attr, 0, &op), -EINVAL);
	CHECK(op == NULL);

	/* An operation that is still running cannot be given back or used again; the one that is launched goes on. */
	CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	io_free(&io);
	object_delete(&obj);
}

static void nulls_everywhere(void)
{
	struct m0_clovis_op *none = NULL;
	struct m0_clovis_op empty;

	memset(&empty, 0, sizeof empty);
	m0_clovis_op_setup(NULL, NULL, 0);
	m0_clovis_op_launch(NULL, 0);
	m0_clovis_op_launch(NULL, 3);
	m0_clovis_op_launch(&none, 1);
	m0_clovis_op_cancel(NULL, 2);
	m0_clovis_op_cancel(&none, 1);
	m0_clovis_op_kick(NULL);
	m0_clovis_op_fini(NULL);
	m0_clovis_op_free(NULL);
	m0_clovis_op_fini(&empty);
	CHECK_EQ(m0_clovis_rc(NULL), -EINVAL);
	CHECK_EQ(m0_clovis_rc(&empty), -EINVAL);
	CHECK_EQ(m0_clovis_op_wait(&empty, OVER, M0_TIME_NEVER), -EINVAL);
	m0_clovis_fini(NULL, true);
	m0_clovis_process_fid(NULL, NULL);
	m0_clovis_process_fid(test_instance, NULL);
	CHECK_EQ(m0_clovis_layout_id(NULL), 0);
	CHECK_EQ(m0_clovis_sync(NULL, true), -EINVAL);
	CHECK_EQ(m0_clovis_entity_sync(NULL), -EINVAL);
	CHECK_EQ(m0_clovis_sync_op_init(NULL), -EINVAL);
	CHECK_EQ(m0_clovis_sync_entity_add(NULL, NULL), -EINVAL);
	CHECK_EQ(m0_clovis_sync_op_add(NULL, NULL), -EINVAL);
	m0_bufvec_free(NULL);
	m0_bufvec_free2(NULL);
	m0_indexvec_free(NULL);
	m0_free(NULL);
	m0_mutex_lock(NULL);
	m0_mutex_unlock(NULL);
	CHECK_EQ(m0_indexvec_alloc(NULL, 1), -EINVAL);
	CHECK_EQ(m0_bufvec_empty_alloc(NULL, 1), -EINVAL);
	CHECK_EQ(m0_fid_sscanf(NULL, NULL), -EINVAL);
}

static void what_is_not_there(void)
{
	struct m0_clovis_op *op = NULL;
	struct m0_clovis_idx idx;
	struct m0_clovis_epoch epoch;
	struct m0_clovis_dtx dtx;
	struct m0_clovis_obj obj;
	struct m0_clovis_rm_lock_req req;
	struct m0_clovis_layout *layout = NULL;
	struct m0_bufvec keys;
	struct m0_fid fid = M0_FID_TINIT('x', 1, 5);
	struct m0_uint128 id = {0, 0};
	int32_t rcs[1];

	id.u_hi = fid.f_container;
	id.u_lo = fid.f_key;
	memset(&keys, 0, sizeof keys);
	m0_clovis_idx_init(&idx, test_realm, &id);
	CHECK_EQ(m0_clovis_entity_create(NULL, &idx.in_entity, &op), -ENOSYS);
	CHECK_EQ(m0_clovis_idx_op(&idx, M0_CLOVIS_IC_GET, &keys, &keys, rcs, 0, &op), -ENOSYS);
	CHECK(op == NULL);
	m0_clovis_idx_fini(&idx);

	m0_clovis_epoch_init(&epoch, test_realm, &id);
	CHECK_EQ(epoch.ep_realm.re_entity.en_sm.sm_rc, -ENOSYS);
	m0_clovis_dtx_init(&dtx, test_realm, &id);
	CHECK_EQ(dtx.dt_realm.re_entity.en_sm.sm_rc, -ENOSYS);
	m0_clovis_realm_open(test_realm, 1, 1, &op);
	CHECK(op != NULL);
	CHECK_EQ(op_run(op, NULL), -ENOSYS);
	op = NULL;
	m0_clovis_realm_create(test_realm, 1, 1, &op);
	CHECK_EQ(op_run(op, NULL), -ENOSYS);
	op = NULL;
	m0_clovis_realm_close(test_realm, 1, 1, &op);
	CHECK_EQ(op_run(op, NULL), -ENOSYS);

	object_create(&obj, test_id(3), 1);
	CHECK_EQ(m0_clovis_obj_layout_type(&obj), M0_CLOVIS_LT_PDCLUST);
	CHECK_EQ(m0_clovis_obj_lock_init(&obj, &m0_rm_clovis_group), -ENOSYS);
	CHECK_EQ(m0_clovis_obj_lock_get(&obj, &req, &m0_rm_no_group, NULL), -ENOSYS);
	CHECK_EQ(m0_clovis_obj_lock_get_sync(&obj, &req, &m0_rm_clovis_group), -ENOSYS);
	m0_clovis_obj_lock_put(&req);
	m0_clovis_obj_lock_fini(&obj);
	CHECK(m0_clovis_layout_alloc(M0_CLOVIS_LT_COMPOSITE) == NULL);
	CHECK_EQ(m0_clovis_layout_op(&obj, M0_CLOVIS_EO_LAYOUT_GET, NULL, &op), -ENOSYS);
	CHECK_EQ(m0_clovis_layout_capture(NULL, &obj, &layout), -ENOSYS);
	CHECK_EQ(m0_clovis_composite_layer_add(NULL, &obj, 0), -ENOSYS);
	m0_clovis_composite_layer_del(NULL, id);
	CHECK_EQ(m0_clovis_composite_layer_idx(id, true, &idx), -ENOSYS);
	m0_clovis_layout_free(NULL);
	object_delete(&obj);
}

int main(int argc, char **argv)
{
	test_begin(argc, argv);
	nulls_everywhere();
	bad_configurations("127.0.0.1@tcp:12345:44:350", argv[2]);
	bad_entities();
	bad_io();
	what_is_not_there();
	test_end();
	return 0;
}
