/* The README's example, whole: makes an object, writes a block, reads it back, deletes the object. Arguments: LOCAL HA. */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include <stdio.h>

/* Launches an operation, waits for it and gives it back. `made`: what the call that made it returned. */
static int run(int made, struct m0_clovis_op **op)
{
	int rc;

	if (made != 0)
		return made;
	m0_clovis_op_launch(op, 1);
	rc = m0_clovis_op_wait(*op, M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED), M0_TIME_NEVER);
	if (rc == 0)
		rc = m0_clovis_rc(*op); /* could it be carried out? */
	if (rc == 0)
		rc = (*op)->op_rc; /* what came out */
	m0_clovis_op_fini(*op);
	m0_clovis_op_free(*op);
	*op = NULL;
	return rc;
}

int main(int argc, char **argv)
{
	struct m0_clovis_config config = {
		.cc_local_addr = argc > 1 ? argv[1] : NULL,
		.cc_ha_addr = argc > 2 ? argv[2] : NULL,
		.cc_profile = "0x7000000000000001:0",
		.cc_process_fid = "0x7200000000000000:0",
		.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN,
		.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE,
	};
	struct m0_clovis *clovis;
	struct m0_clovis_container all;
	struct m0_clovis_obj object;
	struct m0_clovis_op *op = NULL;
	struct m0_uint128 id = {13, 37};
	char text[4096] = "hello", back[4096] = "";
	void *to_write = text, *to_read = back;
	m0_bindex_t start = 0;
	m0_bcount_t bytes = sizeof text;
	struct m0_indexvec extents = {{1, &bytes}, &start};
	struct m0_bufvec from = {{1, &bytes}, &to_write}, into = {{1, &bytes}, &to_read};
	int rc;

	if (m0_clovis_init(&clovis, &config, true) != 0)
		return 1;
	m0_clovis_container_init(&all, NULL, &M0_CLOVIS_UBER_REALM, clovis);
	m0_clovis_obj_init(&object, &all.co_realm, &id, M0_DEFAULT_LAYOUT_ID);
	rc = run(m0_clovis_entity_create(NULL, &object.ob_entity, &op), &op);
	if (rc == 0)
		rc = run(m0_clovis_obj_op(&object, M0_CLOVIS_OC_WRITE, &extents, &from, NULL, 0, &op), &op);
	if (rc == 0)
		rc = run(m0_clovis_obj_op(&object, M0_CLOVIS_OC_READ, &extents, &into, NULL, 0, &op), &op);
	printf("%s\n", rc == 0 ? back : "failed");
	if (rc == 0)
		rc = run(m0_clovis_entity_delete(&object.ob_entity, &op), &op);
	m0_clovis_obj_fini(&object);
	m0_clovis_fini(clovis, true);
	return rc != 0;
}
