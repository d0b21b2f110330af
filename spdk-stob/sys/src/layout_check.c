// Assertions that the declarations in api.rs fit the SPDK headers found. Compiled by build.rs with -fsyntax-only.
#include <stddef.h>
#include <spdk/env.h>
#include <spdk/log.h>
#include <spdk/nvme.h>
#include <spdk/version.h>

#if SPDK_VERSION < SPDK_VERSION_NUM(25, 1, 0)
#error "SPDK 25.01 or newer is needed (26.01 is the version that the lanes of hw-ci run with)"
#endif

#define AT(type, field, offset) \
	_Static_assert(offsetof(type, field) == (offset), #type "." #field " is elsewhere")
#define FIRST(type, bytes) _Static_assert(sizeof(type) >= (bytes), #type " is shorter")

AT(struct spdk_env_opts, name, 0);
AT(struct spdk_env_opts, core_mask, 8);
AT(struct spdk_env_opts, lcore_map, 16);
AT(struct spdk_env_opts, shm_id, 24);
AT(struct spdk_env_opts, mem_channel, 28);
AT(struct spdk_env_opts, main_core, 32);
AT(struct spdk_env_opts, mem_size, 36);
AT(struct spdk_env_opts, no_pci, 40);
AT(struct spdk_env_opts, hugepage_single_segments, 41);
AT(struct spdk_env_opts, unlink_hugepage, 42);
AT(struct spdk_env_opts, no_huge, 43);
AT(struct spdk_env_opts, num_pci_addr, 48);
AT(struct spdk_env_opts, hugedir, 56);
AT(struct spdk_env_opts, pci_blocked, 64);
AT(struct spdk_env_opts, pci_allowed, 72);
AT(struct spdk_env_opts, iova_mode, 80);
AT(struct spdk_env_opts, base_virtaddr, 88);
AT(struct spdk_env_opts, env_context, 96);
AT(struct spdk_env_opts, vf_token, 104);
AT(struct spdk_env_opts, opts_size, 112);
FIRST(struct spdk_env_opts, 120);

AT(struct spdk_pci_addr, domain, 0);
AT(struct spdk_pci_addr, bus, 4);
AT(struct spdk_pci_addr, dev, 5);
AT(struct spdk_pci_addr, func, 6);
_Static_assert(sizeof(struct spdk_pci_addr) == 8, "spdk_pci_addr has another size");

AT(struct spdk_nvme_io_qpair_opts, qprio, 0);
AT(struct spdk_nvme_io_qpair_opts, io_queue_size, 4);
AT(struct spdk_nvme_io_qpair_opts, io_queue_requests, 8);
AT(struct spdk_nvme_io_qpair_opts, delay_cmd_submit, 12);
FIRST(struct spdk_nvme_io_qpair_opts, 13);
_Static_assert(sizeof(struct spdk_nvme_io_qpair_opts) <= 128, "spdk_nvme_io_qpair_opts is longer than api.rs keeps");

_Static_assert(sizeof(struct spdk_nvme_transport_id) <= 1024, "spdk_nvme_transport_id is longer than api.rs keeps");
_Static_assert(sizeof(struct spdk_nvme_cpl) == 16, "spdk_nvme_cpl has another size");
AT(struct spdk_nvme_cpl, status, 14);

AT(struct spdk_nvme_dsm_range, attributes, 0);
AT(struct spdk_nvme_dsm_range, length, 4);
AT(struct spdk_nvme_dsm_range, starting_lba, 8);
_Static_assert(sizeof(struct spdk_nvme_dsm_range) == 16, "spdk_nvme_dsm_range has another size");

AT(struct spdk_nvme_ctrlr_data, sn, 4);
AT(struct spdk_nvme_ctrlr_data, mn, 24);
AT(struct spdk_nvme_ctrlr_data, fr, 64);
AT(struct spdk_nvme_ctrlr_data, vwc, 525);

_Static_assert(SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS == 1U << 30, "force unit access has another bit");
_Static_assert(SPDK_NVME_DSM_ATTR_DEALLOCATE == 4, "deallocate has another bit");
_Static_assert(SPDK_NVME_NS_DEALLOCATE_SUPPORTED == 1, "a namespace flag has another bit");
_Static_assert(SPDK_NVME_NS_FLUSH_SUPPORTED == 2, "a namespace flag has another bit");
_Static_assert(SPDK_VTOPHYS_ERROR == UINT64_MAX, "the error of vtophys has another value");
_Static_assert(SPDK_LOG_ERROR == 0, "a log level has another value");

// The functions, as api.rs declares them.
#define SIGNATURE(name, result, ...) static result (*const check_##name)(__VA_ARGS__) __attribute__((unused)) = name
typedef struct spdk_nvme_ns *ns;
typedef struct spdk_nvme_ctrlr *controller;
typedef struct spdk_nvme_qpair *qpair;
SIGNATURE(spdk_env_opts_init, void, struct spdk_env_opts *);
SIGNATURE(spdk_env_init, int, const struct spdk_env_opts *);
SIGNATURE(spdk_log_set_print_level, void, enum spdk_log_level);
SIGNATURE(spdk_mem_register, int, void *, size_t);
SIGNATURE(spdk_mem_unregister, int, void *, size_t);
SIGNATURE(spdk_vtophys, uint64_t, const void *, uint64_t *);
SIGNATURE(spdk_nvme_transport_id_parse, int, struct spdk_nvme_transport_id *, const char *);
SIGNATURE(spdk_nvme_connect, controller, const struct spdk_nvme_transport_id *, const struct spdk_nvme_ctrlr_opts *, size_t);
SIGNATURE(spdk_nvme_detach, int, controller);
SIGNATURE(spdk_nvme_ctrlr_get_data, const struct spdk_nvme_ctrlr_data *, controller);
SIGNATURE(spdk_nvme_ctrlr_get_ns, ns, controller, uint32_t);
SIGNATURE(spdk_nvme_ctrlr_process_admin_completions, int32_t, controller);
SIGNATURE(spdk_nvme_ctrlr_is_failed, bool, controller);
SIGNATURE(spdk_nvme_ctrlr_disconnect, int, controller);
SIGNATURE(spdk_nvme_ctrlr_get_default_io_qpair_opts, void, controller, struct spdk_nvme_io_qpair_opts *, size_t);
SIGNATURE(spdk_nvme_ctrlr_alloc_io_qpair, qpair, controller, const struct spdk_nvme_io_qpair_opts *, size_t);
SIGNATURE(spdk_nvme_ctrlr_free_io_qpair, int, qpair);
SIGNATURE(spdk_nvme_ctrlr_cmd_abort_ext, int, controller, qpair, void *, spdk_nvme_cmd_cb, void *);
SIGNATURE(spdk_nvme_ns_is_active, bool, ns);
SIGNATURE(spdk_nvme_ns_get_sector_size, uint32_t, ns);
SIGNATURE(spdk_nvme_ns_get_num_sectors, uint64_t, ns);
SIGNATURE(spdk_nvme_ns_get_md_size, uint32_t, ns);
SIGNATURE(spdk_nvme_ns_get_flags, uint32_t, ns);
SIGNATURE(spdk_nvme_ns_get_max_io_xfer_size, uint32_t, ns);
SIGNATURE(spdk_nvme_ns_cmd_readv, int, ns, qpair, uint64_t, uint32_t, spdk_nvme_cmd_cb, void *, uint32_t,
	  spdk_nvme_req_reset_sgl_cb, spdk_nvme_req_next_sge_cb);
SIGNATURE(spdk_nvme_ns_cmd_writev, int, ns, qpair, uint64_t, uint32_t, spdk_nvme_cmd_cb, void *, uint32_t,
	  spdk_nvme_req_reset_sgl_cb, spdk_nvme_req_next_sge_cb);
SIGNATURE(spdk_nvme_ns_cmd_flush, int, ns, qpair, spdk_nvme_cmd_cb, void *);
SIGNATURE(spdk_nvme_ns_cmd_dataset_management, int, ns, qpair, uint32_t, const struct spdk_nvme_dsm_range *, uint16_t,
	  spdk_nvme_cmd_cb, void *);
SIGNATURE(spdk_nvme_qpair_process_completions, int32_t, qpair, uint32_t);
typedef void (*command_callback)(void *, const struct spdk_nvme_cpl *);
typedef void (*reset_callback)(void *, uint32_t);
typedef int (*next_callback)(void *, void **, uint32_t *);
static command_callback check_command __attribute__((unused)) = (spdk_nvme_cmd_cb)0;
static reset_callback check_reset __attribute__((unused)) = (spdk_nvme_req_reset_sgl_cb)0;
static next_callback check_next __attribute__((unused)) = (spdk_nvme_req_next_sge_cb)0;
