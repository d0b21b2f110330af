/* See c0.h. */
#include "c0.h"
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char COMMON_HELP[] =
	"  -l, --local ENDPOINT        endpoint of this client, as in 127.0.0.1@tcp:12345:44:301\n"
	"  -H, --ha ENDPOINT           endpoint of the cluster's control daemon\n"
	"  -p, --profile FID           the cluster's profile, as in 0x7000000000000001:0\n"
	"  -P, --process FID           process fid of this client, as in 0x7200000000000000:0\n"
	"  -o, --object HI:LO          object id\n"
	"  -n, --n_obj COUNT           as many objects, from that id on (1)\n"
	"  -S, --msg_size BYTES        largest message (131072)\n"
	"  -q, --min_queue LENGTH      shortest receive queue (2)\n"
	"  -v, --pver FID              accepted; the pool version is the cluster's\n"
	"  -e, --enable-locks          accepted; there are no object locks yet\n"
	"  -h, --help                  this text\n";
static const char BLOCK_HELP[] =
	"  -s, --block-size BYTES      block size, a multiple of 4096; 64k, 1m\n"
	"  -c, --block-count COUNT     number of blocks\n"
	"  -L, --layout-id ID          1 to 14 for units of 4 KiB to 32 MiB (1 MiB is the largest here), 0 for the pool's\n"
	"  -b, --blks-per-io COUNT     blocks of one operation\n"
	"  -O, --offset BYTES          where in the object to begin, a multiple of 4096\n"
	"  -u, --update_mode           write into an object that exists\n"
	"  -r, --read-verify           read parity too and compare\n"
	"  -z, --fill-zeros            write zeros instead of a file's bytes\n"
	"  -g, --print-pver            print the object's pool version\n"
	"  -i, --block-index N, -t, --trunc-len N, -G, --DI-generate, -I, --DI-user-input, -W N, -R N: accepted\n";

static const struct option OPTIONS[] = {
	{"local", required_argument, NULL, 'l'},	{"ha", required_argument, NULL, 'H'},
	{"profile", required_argument, NULL, 'p'},	{"process", required_argument, NULL, 'P'},
	{"object", required_argument, NULL, 'o'},	{"block-size", required_argument, NULL, 's'},
	{"block-count", required_argument, NULL, 'c'},	{"block-index", required_argument, NULL, 'i'},
	{"trunc-len", required_argument, NULL, 't'},	{"layout-id", required_argument, NULL, 'L'},
	{"pver", required_argument, NULL, 'v'},		{"n_obj", required_argument, NULL, 'n'},
	{"msg_size", required_argument, NULL, 'S'},	{"min_queue", required_argument, NULL, 'q'},
	{"blks-per-io", required_argument, NULL, 'b'},	{"offset", required_argument, NULL, 'O'},
	{"update_mode", no_argument, NULL, 'u'},	{"update-mode", no_argument, NULL, 'u'},
	{"enable-locks", no_argument, NULL, 'e'},	{"read-verify", no_argument, NULL, 'r'},
	{"fill-zeros", no_argument, NULL, 'z'},		{"DI-generate", no_argument, NULL, 'G'},
	{"DI-user-input", no_argument, NULL, 'I'},	{"print-pver", no_argument, NULL, 'g'},
	{"writer-numb", required_argument, NULL, 'W'},	{"reader-numb", required_argument, NULL, 'R'},
	{"help", no_argument, NULL, 'h'},		{NULL, 0, NULL, 0},
};

static void refuse(const struct c0 *c0, const char *what, const char *text)
{
	fprintf(stderr, "%s: %s%s%s (see %s --help)\n", c0->program, what, text != NULL ? " " : "", text != NULL ? text : "", c0->program);
	exit(EXIT_FAILURE);
}

static uint64_t number_of(const struct c0 *c0, const char *what, const char *text)
{
	char *end;
	uint64_t number;
	m0_bcount_t with_suffix;

	errno = 0;
	number = strtoull(text, &end, 0);
	if (*text != '-' && *text != '\0' && *end == '\0' && errno == 0)
		return number;
	if (m0_bcount_get(text, &with_suffix) != 0)
		refuse(c0, what, text);
	return with_suffix;
}

static void parse_id(struct c0 *c0, const char *text)
{
	struct m0_fid id;

	if (m0_fid_sscanf(text, &id) != 0)
		refuse(c0, "not an object id, which is written HI:LO:", text);
	c0->args.id.u_hi = id.f_container;
	c0->args.id.u_lo = id.f_key;
	c0->args.has_id = true;
}

static void parse(struct c0 *c0, int argc, char **argv, unsigned wants, const char *usage)
{
	struct c0_args *args = &c0->args;
	int letter;

	args->objects = 1;
	args->message_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	args->queue_length = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	while ((letter = getopt_long(argc, argv, ":l:H:p:P:o:s:c:i:t:L:v:n:S:q:b:O:W:R:uerzGIgh", OPTIONS, NULL)) != -1) {
		switch (letter) {
		case 'l': args->local = optarg; break;
		case 'H': args->ha = optarg; break;
		case 'p': args->profile = optarg; break;
		case 'P': args->process = optarg; break;
		case 'o': parse_id(c0, optarg); break;
		case 's': args->block_size = number_of(c0, "not a block size:", optarg); args->has_block_size = true; break;
		case 'c': args->block_count = number_of(c0, "not a block count:", optarg); args->has_block_count = true; break;
		case 'L': args->layout_id = number_of(c0, "not a layout id:", optarg); args->has_layout = true; break;
		case 'n': args->objects = number_of(c0, "not a number of objects:", optarg); break;
		case 'b': args->blocks_per_io = number_of(c0, "not a number of blocks:", optarg); break;
		case 'O': args->offset = number_of(c0, "not an offset:", optarg); break;
		case 'S': args->message_size = (uint32_t)number_of(c0, "not a message size:", optarg); break;
		case 'q': args->queue_length = (uint32_t)number_of(c0, "not a queue length:", optarg); break;
		case 'i': case 't': case 'W': case 'R': (void)number_of(c0, "not a number:", optarg); break;
		case 'u': args->update = true; break;
		case 'r': args->read_verify = true; break;
		case 'z': args->zeros = true; break;
		case 'g': args->print_pool_version = true; break;
		case 'v': case 'e': case 'G': case 'I': break;
		case 'h':
			printf("%s\n\n%s%s", usage, COMMON_HELP, wants & C0_WANTS_BLOCKS ? BLOCK_HELP : "");
			exit(EXIT_SUCCESS);
		case ':': refuse(c0, "no value for", argv[optind - 1]); break;
		default: refuse(c0, "no such option:", argv[optind - 1]);
		}
	}
	if (args->local == NULL) refuse(c0, "-l is missing: the endpoint of this client", NULL);
	if (args->ha == NULL) refuse(c0, "-H is missing: the endpoint of the control daemon", NULL);
	if (args->profile == NULL) refuse(c0, "-p is missing: the profile", NULL);
	if (args->process == NULL) refuse(c0, "-P is missing: the process fid", NULL);
	if (!args->has_id) refuse(c0, "-o is missing: the object id", NULL);
	if (args->objects == 0) refuse(c0, "-n 0 names no object", NULL);
	if (wants & C0_WANTS_BLOCKS) {
		if (!args->has_block_size || !args->has_block_count) refuse(c0, "-s and -c are needed: block size and count", NULL);
		if (args->block_size == 0 || args->block_size % 4096 != 0) {
			fprintf(stderr, "%s: a block size of %llu bytes is not a multiple of 4096\n", c0->program,
				(unsigned long long)args->block_size);
			exit(EXIT_FAILURE);
		}
		if (args->block_count == 0) refuse(c0, "a block count of 0 names no bytes", NULL);
		if (args->block_count > (UINT64_MAX >> 2) / args->block_size) refuse(c0, "-s times -c is too much", NULL);
		if (args->offset % 4096 != 0) refuse(c0, "-O is not a multiple of 4096", NULL);
	}
	if (optind < argc) args->file = argv[optind++];
	if (args->file != NULL && !(wants & (C0_WANTS_FILE | C0_MAY_HAVE_FILE))) refuse(c0, "no file is wanted:", args->file);
	if (args->file == NULL && (wants & C0_WANTS_FILE) && !args->zeros) refuse(c0, "the file is missing", NULL);
	if (optind < argc) refuse(c0, "one word too many:", argv[optind]);
}

void c0_begin(struct c0 *c0, int argc, char **argv, unsigned wants, const char *usage)
{
	const char *slash = strrchr(argv[0], '/');
	int rc;

	memset(c0, 0, sizeof *c0);
	c0->program = slash != NULL ? slash + 1 : argv[0];
	parse(c0, argc, argv, wants, usage);
	c0->index_config.kc_create_meta = false;
	c0->config.cc_is_oostore = true;
	c0->config.cc_is_read_verify = c0->args.read_verify;
	c0->config.cc_local_addr = c0->args.local;
	c0->config.cc_ha_addr = c0->args.ha;
	c0->config.cc_profile = c0->args.profile;
	c0->config.cc_process_fid = c0->args.process;
	c0->config.cc_tm_recv_queue_min_len = c0->args.queue_length;
	c0->config.cc_max_rpc_msg_size = c0->args.message_size;
	c0->config.cc_layout_id = (uint32_t)c0->args.layout_id;
	c0->config.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	c0->config.cc_idx_service_conf = &c0->index_config;
	rc = m0_clovis_init(&c0->instance, &c0->config, true);
	if (rc == 0) {
		m0_clovis_container_init(&c0->container, NULL, &M0_CLOVIS_UBER_REALM, c0->instance);
		rc = c0->container.co_realm.re_entity.en_sm.sm_rc;
	}
	if (rc != 0) {
		/* The library has said why. */
		fprintf(stderr, "%s: no connection to the cluster: %s\n", c0->program, strerror(-rc));
		exit(EXIT_FAILURE);
	}
}

void c0_end(struct c0 *c0)
{
	m0_clovis_fini(c0->instance, true);
}

int c0_failed(const struct c0 *c0, int rc, const char *what)
{
	const struct m0_uint128 *id = &c0->args.id;

	fprintf(stderr, "%s: object %llu:%llu: %s: %s\n", c0->program, (unsigned long long)id->u_hi, (unsigned long long)id->u_lo, what,
		strerror(-rc));
	return EXIT_FAILURE;
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

static void init_object(struct c0 *c0, struct m0_clovis_obj *obj, uint64_t index)
{
	struct m0_uint128 step = {0, index}, id;

	m0_uint128_add(&id, &c0->args.id, &step);
	m0_clovis_obj_init(obj, &c0->container.co_realm, &id, c0->args.has_layout ? c0->args.layout_id : m0_clovis_layout_id(c0->instance));
}

int c0_create(struct c0 *c0, struct m0_clovis_obj *obj, uint64_t index)
{
	struct m0_clovis_op *op = NULL;
	int rc;

	init_object(c0, obj, index);
	rc = m0_clovis_entity_create(NULL, &obj->ob_entity, &op);
	return rc != 0 ? rc : run(op);
}

int c0_open(struct c0 *c0, struct m0_clovis_obj *obj, uint64_t index)
{
	struct m0_clovis_op *op = NULL;
	int rc;

	init_object(c0, obj, index);
	rc = m0_clovis_entity_open(&obj->ob_entity, &op);
	return rc != 0 ? rc : run(op);
}

int c0_delete(struct c0 *c0, struct m0_clovis_obj *obj)
{
	struct m0_clovis_op *op = NULL;
	int rc = m0_clovis_entity_delete(&obj->ob_entity, &op);

	(void)c0;
	return rc != 0 ? rc : run(op);
}

int c0_slot_init(struct c0_slot *slot, uint64_t bytes_max)
{
	int rc;

	memset(slot, 0, sizeof *slot);
	rc = m0_indexvec_alloc(&slot->ext, 1);
	if (rc == 0)
		rc = m0_bufvec_alloc(&slot->data, 1, bytes_max);
	return rc;
}

void c0_slot_fini(struct c0_slot *slot)
{
	if (slot->op != NULL) {
		m0_clovis_op_fini(slot->op);
		m0_clovis_op_free(slot->op);
	}
	m0_indexvec_free(&slot->ext);
	m0_bufvec_free(&slot->data);
}

int c0_slot_launch(struct c0_slot *slot, struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, uint64_t offset, uint64_t bytes)
{
	int rc;

	slot->ext.iv_index[0] = offset;
	slot->ext.iv_vec.v_count[0] = bytes;
	slot->data.ov_vec.v_count[0] = bytes;
	slot->bytes = bytes;
	rc = m0_clovis_obj_op(obj, opcode, &slot->ext, &slot->data, NULL, 0, &slot->op);
	if (rc == 0) {
		m0_clovis_op_launch(&slot->op, 1);
		slot->is_running = true;
	}
	return rc;
}

int c0_slot_wait(struct c0_slot *slot)
{
	int rc;

	if (!slot->is_running)
		return 0;
	slot->is_running = false;
	rc = m0_clovis_op_wait(slot->op, M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED), M0_TIME_NEVER);
	return rc != 0 ? rc : m0_clovis_rc(slot->op);
}

uint64_t c0_op_bytes(const struct c0 *c0)
{
	const struct c0_args *args = &c0->args;
	uint64_t blocks = args->blocks_per_io;

	if (blocks == 0 || blocks > C0_OP_BYTES / args->block_size)
		blocks = C0_OP_BYTES / args->block_size;
	if (blocks > args->block_count)
		blocks = args->block_count;
	/* A block that is longer than an operation's share goes in pieces. */
	return blocks > 0 ? blocks * args->block_size : C0_OP_BYTES;
}
