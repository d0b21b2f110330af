/*
 * ops LOCAL HA COUNT [PAUSE_US]: COUNT reads of 4 KiB, one after the other, with one operation that is used again. For ./dev bench ffi, which has
 * it pause before each, so that every read finds the client's thread asleep.
 */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int launch_and_wait(struct m0_clovis_op *op)
{
	int rc;

	m0_clovis_op_launch(&op, 1);
	rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED), M0_TIME_NEVER);
	return rc != 0 ? rc : m0_clovis_rc(op) != 0 ? m0_clovis_rc(op) : op->op_rc;
}

int main(int argc, char **argv)
{
	struct m0_clovis_config config;
	struct m0_clovis *instance;
	struct m0_clovis_container container;
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct m0_uint128 id = {0xbe9c, 1};
	struct m0_bufvec data;
	m0_bindex_t start = 0;
	m0_bcount_t bytes = 4096;
	struct m0_indexvec ext = {{1, &bytes}, &start};
	useconds_t pause_us = 0;
	long i, count;
	int rc;

	if (argc < 4)
		return EXIT_FAILURE;
	count = atol(argv[3]);
	if (argc > 4)
		pause_us = (useconds_t)atol(argv[4]);
	memset(&config, 0, sizeof config);
	config.cc_local_addr = argv[1];
	config.cc_ha_addr = argv[2];
	config.cc_profile = "0x7000000000000001:0";
	config.cc_process_fid = "0x7200000000000000:0";
	config.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	config.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	if (m0_clovis_init(&instance, &config, true) != 0)
		return EXIT_FAILURE;
	m0_clovis_container_init(&container, NULL, &M0_CLOVIS_UBER_REALM, instance);
	m0_clovis_obj_init(&obj, &container.co_realm, &id, 0);
	rc = m0_clovis_entity_open(&obj.ob_entity, &op);
	if (rc == 0)
		rc = launch_and_wait(op);
	if (rc == 0)
		rc = m0_bufvec_alloc(&data, 1, bytes);
	for (i = 0; i < count && rc == 0; ++i) {
		if (pause_us != 0)
			usleep(pause_us);
		rc = m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &ext, &data, NULL, 0, &op);
		if (rc == 0)
			rc = launch_and_wait(op);
	}
	if (rc != 0)
		fprintf(stderr, "ops: %d\n", rc);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	m0_bufvec_free(&data);
	m0_clovis_obj_fini(&obj);
	m0_clovis_fini(instance, true);
	return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
