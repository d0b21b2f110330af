/* Of 2021 to 2022: flags of operations and entities, options, locks without groups, an id generator. */
#define M0_TRACE_SUBSYSTEM M0_TRACE_SUBSYS_CLIENT
#include "lib/trace.h"
#include "motr/client.h"
#include "motr/client_internal.h"
#include "motr/idx.h"
#include "motr/layout.h"
#include "helpers/ufid.h"
#include "conf/obj.h"
#include <stdio.h>
#include <stdlib.h>

enum { UNITS = 4, UNIT = 16384 };

static struct m0_client *client;
static struct m0_container container;
static struct m0_config config;
static struct m0_idx_dix_config dix_config = {.kc_create_meta = false};
static struct m0_ufid_generator generator;

static int finish(struct m0_op **op)
{
	int rc;

	m0_op_launch(op, 1);
	rc = m0_op_wait(*op, M0_BITS(M0_OS_FAILED, M0_OS_STABLE), m0_time_from_now(60, 0));
	if (rc == 0)
		rc = m0_rc(*op) ?: (*op)->op_rc;
	M0_ASSERT(!(*op)->op_cancelling);
	m0_op_fini(*op);
	m0_op_free(*op);
	*op = NULL;
	return M0_RC(rc);
}

static int transfer(struct m0_obj *obj, enum m0_obj_opcode opcode, m0_bindex_t at, struct m0_bufvec *data, uint32_t flags)
{
	struct m0_indexvec ext;
	struct m0_op *op = NULL;
	unsigned i;
	int rc = m0_indexvec_alloc(&ext, UNITS);

	if (rc != 0)
		return M0_ERR(rc);
	for (i = 0; i < UNITS; ++i) {
		ext.iv_index[i] = at + i * UNIT;
		ext.iv_vec.v_count[i] = UNIT;
	}
	rc = m0_obj_op(obj, opcode, &ext, data, NULL, 0, flags, &op) ?: finish(&op);
	m0_indexvec_free(&ext);
	return rc;
}

int main(int argc, char **argv)
{
	struct m0_obj obj;
	struct m0_idx idx;
	struct m0_rm_lock_req req;
	struct m0_op *op = NULL;
	struct m0_uint128 id;
	struct m0_bufvec data;
	struct m0_fid process;
	unsigned i;
	int rc;

	M0_ASSERT(argc >= 5);
	config = (struct m0_config){
		.mc_is_oostore = true,
		.mc_is_addb_init = true,
		.mc_addb_size = 128 << 20,
		.mc_local_addr = argv[1],
		.mc_ha_addr = argv[2],
		.mc_profile = argv[3],
		.mc_process_fid = argv[4],
		.mc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN,
		.mc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE,
		.mc_layout_id = m0_obj_unit_size_to_layout_id(UNIT),
		.mc_idx_service_id = M0_IDX_DIX,
		.mc_idx_service_conf = &dix_config,
	};
	rc = m0_client_init(&client, &config, true);
	M0_ASSERT_INFO(rc == 0, "rc=%d", rc);
	M0_ASSERT(client->m0c_reqh.rh_pools == NULL && client->m0c_motr != NULL && client->m0c_config == &config);
	m0_process_fid(client, &process);
	M0_ASSERT(m0_fid_tget(&process) == M0_CONF__PROCESS_FT_ID);
	m0_container_init(&container, NULL, &M0_UBER_REALM, client);
	M0_ASSERT(container.co_realm.re_entity.en_sm.sm_rc == 0);

	rc = m0_ufid_init(client, &generator) ?: m0_ufid_next(&generator, 1, &id);
	M0_ASSERT(rc == 0 && m0_uint128_cmp(&M0_ID_APP, &id) < 0);
	M0_SET0(&obj);
	m0_obj_init(&obj, &container.co_realm, &id, m0_client_layout_id(client));
	obj.ob_entity.en_flags |= M0_ENF_META | M0_ENF_DI;
	M0_ASSERT(obj.ob_attr.oa_buf_size == 0);
	/* Locks of objects are not there yet; a program that can do without goes on. */
	M0_ASSERT(m0_obj_lock_init(&obj) == -ENOSYS);
	M0_ASSERT(m0_obj_write_lock_get_sync(&obj, &req) == -ENOSYS);
	rc = m0_entity_create(NULL, &obj.ob_entity, &op) ?: finish(&op);
	M0_ASSERT(rc == 0);
	M0_ASSERT(m0_obj_layout_id_to_unit_size(obj.ob_attr.oa_layout_id) == UNIT);
	M0_ASSERT(m0_obj_layout_type(&obj) == M0_LT_PDCLUST);

	rc = m0_bufvec_alloc_aligned(&data, UNITS, UNIT, m0_pageshift_get());
	M0_ASSERT(rc == 0);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 0, &data, M0_OOF_NOHOLE) == -ENOENT);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 0, &data, 0) == 0);
	M0_ASSERT(m0_forall(unit, UNITS, M0_IS0((char(*)[UNIT])data.ov_buf[unit])));
	for (i = 0; i < UNITS; ++i)
		memset(data.ov_buf[i], 'a' + i, UNIT);
	M0_ASSERT(transfer(&obj, M0_OC_WRITE, 0, &data, M0_OOF_SYNC | M0_OOF_FULL) == 0);
	M0_ASSERT(transfer(&obj, M0_OC_WRITE, 64 * UNIT, &data, M0_OOF_LAST) == 0);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 0, &data, M0_OOF_HOLE) == 0);
	M0_ASSERT(m0_forall(unit, UNITS, ((char *)data.ov_buf[unit])[UNIT - 1] == (char)('a' + unit)));
	/* Between the two writes nothing stands, and behind the last one nothing either. */
	M0_ASSERT(transfer(&obj, M0_OC_READ, 32 * UNIT, &data, M0_OOF_HOLE) == -ENOENT);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 66 * UNIT, &data, M0_OOF_HOLE) == -ENOENT);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 64 * UNIT, &data, M0_OOF_HOLE) == 0);
	M0_ASSERT(transfer(&obj, M0_OC_READ, 0, &data, 1U << 20) == -EINVAL);
	m0_bufvec_free_aligned(&data, m0_pageshift_get());

	m0_idx_init(&idx, &container.co_realm, &id);
	M0_ASSERT(m0_fid_eq(&idx.in_attr.idx_pver, &M0_FID0) && idx.in_attr.idx_layout_type == 0);
	M0_ASSERT(m0_idx_op(&idx, M0_IC_PUT, NULL, NULL, NULL, M0_OIF_OVERWRITE | M0_OIF_CROW, &op) == -ENOSYS);
	M0_ASSERT(m0_idx_op_setoption(NULL, M0_OIO_MIN_SUCCESS, M0_DIX_MIN_REPLICA_QUORUM) == -ENOSYS);
	m0_idx_fini(&idx);

	rc = m0_entity_delete(&obj.ob_entity, &op) ?: finish(&op);
	M0_ASSERT(rc == 0);
	m0_entity_fini(&obj.ob_entity);
	m0_ufid_fini(&generator);
	m0_client_fini(client, true);
	return EXIT_SUCCESS;
}
