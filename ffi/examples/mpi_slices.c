/*
 * mpi_slices LOCAL HA HI:LO: every rank writes and reads its slice of one object. Slices are whole parity groups (here 4 MiB), so no two
 * ranks change the same group. Each rank's endpoint is LOCAL's with its own last number.
 */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE = 4 << 20 };

static void die(int rank, const char *what, int rc)
{
	fprintf(stderr, "rank %d: %s: %d\n", rank, what, rc);
	MPI_Abort(MPI_COMM_WORLD, 1);
	exit(EXIT_FAILURE);
}

static int run(struct m0_clovis_op *op)
{
	int rc;

	m0_clovis_op_launch(&op, 1);
	rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED), M0_TIME_NEVER);
	if (rc == 0)
		rc = m0_clovis_rc(op);
	if (rc == 0)
		rc = op->op_rc;
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	return rc;
}

static int transfer(struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, m0_bindex_t offset, struct m0_bufvec *data)
{
	struct m0_clovis_op *op = NULL;
	m0_bcount_t count = SLICE;
	struct m0_indexvec ext = {{1, &count}, &offset};
	int rc = m0_clovis_obj_op(obj, opcode, &ext, data, NULL, 0, &op);

	return rc != 0 ? rc : run(op);
}

int main(int argc, char **argv)
{
	struct m0_clovis_config config;
	struct m0_idx_dix_config index_config;
	struct m0_clovis *instance;
	struct m0_clovis_container container;
	struct m0_clovis_obj obj;
	struct m0_clovis_op *op = NULL;
	struct m0_bufvec data;
	struct m0_fid id;
	struct m0_uint128 object_id;
	char local[128];
	const char *last;
	int rank, ranks, rc, other;
	size_t i;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	if (argc != 4 || m0_fid_sscanf(argv[3], &id) != 0 || (last = strrchr(argv[1], ':')) == NULL)
		die(rank, "mpi_slices LOCAL HA HI:LO", argc);
	snprintf(local, sizeof local, "%.*s:%d", (int)(last - argv[1]), argv[1], atoi(last + 1) + rank);
	memset(&config, 0, sizeof config);
	memset(&index_config, 0, sizeof index_config);
	config.cc_is_oostore = true;
	config.cc_local_addr = local;
	config.cc_ha_addr = argv[2];
	config.cc_profile = "0x7000000000000001:0";
	config.cc_process_fid = "0x7200000000000000:0";
	config.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	config.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	config.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	config.cc_idx_service_conf = &index_config;
	rc = m0_clovis_init(&instance, &config, true);
	if (rc != 0)
		die(rank, "init", rc);
	m0_clovis_container_init(&container, NULL, &M0_CLOVIS_UBER_REALM, instance);
	object_id.u_hi = id.f_container;
	object_id.u_lo = id.f_key;
	m0_clovis_obj_init(&obj, &container.co_realm, &object_id, 5);

	/* One makes the object, the others open it. */
	if (rank == 0) {
		rc = m0_clovis_entity_create(NULL, &obj.ob_entity, &op);
		rc = rc != 0 ? rc : run(op);
		if (rc != 0)
			die(rank, "create", rc);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank != 0) {
		rc = m0_clovis_entity_open(&obj.ob_entity, &op);
		rc = rc != 0 ? rc : run(op);
		if (rc != 0)
			die(rank, "open", rc);
	}
	rc = m0_bufvec_alloc(&data, 1, SLICE);
	if (rc != 0)
		die(rank, "memory", rc);
	memset(data.ov_buf[0], 'a' + rank, SLICE);
	rc = transfer(&obj, M0_CLOVIS_OC_WRITE, (m0_bindex_t)rank * SLICE, &data);
	if (rc != 0)
		die(rank, "write", rc);
	MPI_Barrier(MPI_COMM_WORLD);
	/* Its own slice, then that of the next rank. */
	for (other = rank; other <= rank + 1; ++other) {
		rc = transfer(&obj, M0_CLOVIS_OC_READ, (m0_bindex_t)(other % ranks) * SLICE, &data);
		if (rc != 0)
			die(rank, "read", rc);
		for (i = 0; i < SLICE; ++i)
			if (((char *)data.ov_buf[0])[i] != 'a' + other % ranks)
				die(rank, "other bytes came back", other);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == 0) {
		op = NULL;
		rc = m0_clovis_entity_delete(&obj.ob_entity, &op);
		rc = rc != 0 ? rc : run(op);
		if (rc != 0)
			die(rank, "delete", rc);
		printf("%d ranks wrote and read %d bytes each\n", ranks, (int)SLICE);
	}
	m0_clovis_obj_fini(&obj);
	m0_bufvec_free(&data);
	m0_clovis_fini(instance, true);
	MPI_Finalize();
	return EXIT_SUCCESS;
}
