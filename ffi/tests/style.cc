// From C++: the headers inside extern "C", a guard for the operation, a lambda as a callback, vectors over std::vector.
extern "C" {
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "clovis/clovis_internal.h"
#include "lib/semaphore.h"
}
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(bool condition, const char *what)
{
	if (!condition)
		throw std::runtime_error(what);
}

class Operation {
public:
	Operation() : op_(nullptr) {}
	~Operation()
	{
		if (op_ != nullptr) {
			m0_clovis_op_fini(op_);
			m0_clovis_op_free(op_);
		}
	}
	Operation(const Operation &) = delete;
	Operation &operator=(const Operation &) = delete;
	m0_clovis_op **slot() { return &op_; }
	m0_clovis_op *get() { return op_; }
	int run()
	{
		m0_clovis_op_launch(&op_, 1);
		int rc = m0_clovis_op_wait(op_, M0_BITS(M0_CLOVIS_OS_STABLE, M0_CLOVIS_OS_FAILED), M0_TIME_NEVER);
		return rc != 0 ? rc : m0_clovis_rc(op_) != 0 ? m0_clovis_rc(op_) : op_->op_rc;
	}

private:
	m0_clovis_op *op_;
};

} // namespace

int main(int argc, char **argv)
try {
	check(argc >= 3, "LOCAL HA");
	m0_clovis_config config;
	m0_idx_dix_config dix;
	std::memset(&config, 0, sizeof config);
	std::memset(&dix, 0, sizeof dix);
	const std::string local = argv[1], ha = argv[2];
	config.cc_is_oostore = true;
	config.cc_local_addr = local.c_str();
	config.cc_ha_addr = ha.c_str();
	config.cc_profile = "0x7000000000000001:0";
	config.cc_process_fid = "0x7200000000000000:0";
	config.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	config.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	config.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	config.cc_idx_service_conf = &dix;
	m0_clovis *instance = nullptr;
	check(m0_clovis_init(&instance, &config, true) == 0, "init");
	m0_clovis_container container;
	m0_clovis_container_init(&container, nullptr, &M0_CLOVIS_UBER_REALM, instance);
	check(container.co_realm.re_entity.en_sm.sm_rc == 0, "realm");
	{
		m0_clovis_obj obj;
		const m0_uint128 id = M0_UINT128(0xcc, 1);
		m0_clovis_obj_init(&obj, &container.co_realm, &id, 1);
		Operation create, write, read, remove;
		check(m0_clovis_entity_create(nullptr, &obj.ob_entity, create.slot()) == 0 && create.run() == 0, "create");

		std::vector<char> bytes(3 * 4096, 'c'), back(3 * 4096);
		m0_bindex_t index = 4096;
		m0_bcount_t count = bytes.size();
		void *buffer = bytes.data();
		m0_indexvec ext = {{1, &count}, &index};
		m0_bufvec data = {{1, &count}, &buffer};
		check(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &ext, &data, nullptr, 0, write.slot()) == 0, "write");
		m0_semaphore done;
		m0_semaphore_init(&done, 0);
		m0_clovis_op_ops callbacks = {nullptr, nullptr, [](m0_clovis_op *op) {
						      m0_semaphore_up(static_cast<m0_semaphore *>(op->op_datum));
					      }};
		write.get()->op_datum = &done;
		m0_clovis_op_setup(write.get(), &callbacks, 0);
		check(write.run() == 0, "write");
		m0_semaphore_down(&done);
		m0_semaphore_fini(&done);
		buffer = back.data();
		check(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &ext, &data, nullptr, 0, read.slot()) == 0 && read.run() == 0, "read");
		check(bytes == back, "other bytes came back");
		check(m0_clovis_entity_delete(&obj.ob_entity, remove.slot()) == 0 && remove.run() == 0, "delete");
		m0_clovis_entity_fini(&obj.ob_entity);
	}
	m0_clovis_fini(instance, true);
	return 0;
} catch (const std::exception &error) {
	std::fprintf(stderr, "%s\n", error.what());
	return 1;
}
