/* In C++17, with the interface inside a class. */
#include <cstdio>
#include <vector>
#include <string>
#include <memory>
#include <atomic>
extern "C" {
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "clovis/clovis_internal.h"
#include "lib/trace.h"
#include "lib/memory.h"
#include "lib/tlist.h"
}
struct member {
	int v;
	m0_tlink link;
	uint64_t magic;
};
M0_TL_DESCR_DEFINE(mem, "members", static, struct member, link, magic, 1, 2);
M0_TL_DEFINE(mem, static, struct member);
static std::atomic<int> stable{0};
static void on_stable(struct m0_clovis_op *op)
{
	*static_cast<bool *>(op->op_datum) = true;
	++stable;
}
class Store
{
	m0_clovis *inst = nullptr;
	m0_clovis_container cont{};
	m0_clovis_config conf{};
	m0_idx_dix_config dix{};

      public:
	Store(char **av)
	{
		conf.cc_local_addr = av[1];
		conf.cc_ha_addr = av[2];
		conf.cc_profile = av[3];
		conf.cc_process_fid = av[4];
		conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
		conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
		conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
		conf.cc_idx_service_conf = &dix;
		int rc = m0_clovis_init(&inst, &conf, true);
		if (rc)
			throw rc;
		m0_clovis_container_init(&cont, nullptr, &M0_CLOVIS_UBER_REALM, inst);
	}
	~Store()
	{
		m0_clovis_fini(inst, true);
	}
	m0_clovis_realm *realm()
	{
		return &cont.co_realm;
	}
};
static int run(m0_clovis_op *op, bool *flag = nullptr)
{
	static const m0_clovis_op_ops cbs = {nullptr, nullptr, on_stable};
	if (flag) {
		op->op_datum = flag;
		m0_clovis_op_setup(op, &cbs, 0);
	}
	m0_clovis_op_launch(&op, 1);
	int rc = m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), m0_time_from_now(30, 0));
	if (!rc)
		rc = m0_clovis_rc(op);
	if (!rc)
		rc = op->op_rc;
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	return rc;
}
int main(int, char **argv)
{
	Store s(argv);
	m0_clovis_obj o;
	m0_uint128 id = M0_UINT128(0x88, 1);
	m0_clovis_op *op = nullptr;
	bool seen = false;
	m0_tl tl;
	member mm{};
	int *ip;
	mem_tlist_init(&tl);
	mem_tlink_init_at(&mm, &tl);
	member *x;
	m0_tl_for(mem, &tl, x)
	{
		x->v = 3;
	}
	m0_tl_endfor;
	mem_tlink_del_fini(&mm);
	mem_tlist_fini(&tl);
	M0_ALLOC_ARR(ip, 4);
	m0_free(ip);
	m0_clovis_obj_init(&o, s.realm(), &id, 1);
	if (m0_clovis_entity_create(nullptr, &o.ob_entity, &op) || run(op, &seen))
		return 1;
	std::vector<char> buf(16384, 'q'), back(16384);
	void *seg = buf.data();
	m0_bcount_t n = buf.size();
	m0_bindex_t at = 0;
	m0_indexvec ext = {{1, &n}, &at};
	m0_bufvec data = {{1, &n}, &seg};
	op = nullptr;
	if (m0_clovis_obj_op(&o, M0_CLOVIS_OC_WRITE, &ext, &data, nullptr, 0, &op) || run(op, &seen))
		return 2;
	seg = back.data();
	op = nullptr;
	if (m0_clovis_obj_op(&o, M0_CLOVIS_OC_READ, &ext, &data, nullptr, 0, &op) || run(op))
		return 3;
	if (buf != back || !seen || stable != 2)
		return 4;
	op = nullptr;
	if (m0_clovis_entity_delete(&o.ob_entity, &op) || run(op))
		return 5;
	m0_clovis_entity_fini(&o.ob_entity);
	M0_LOG(M0_WARN, "bye " FID_F, FID_P(&M0_FID0));
	return 0;
}
