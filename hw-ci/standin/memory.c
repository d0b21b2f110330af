/* Protection domains, regions, windows of type 2, and the table of keys: index above, a tag of 8 bits below, so that a stale key opens nothing. */
#include "standin.h"

#include <string.h>

enum what { NOTHING, REGION, WINDOW };

static struct {
	enum what what;
	uint8_t tag;
	void *of;
} keys[KEYS_MAX];
static uint64_t registered_bytes;

static uint32_t key_new(enum what what, void *of)
{
	/* Key 0 is nobody's. */
	for (uint32_t index = 1; index < KEYS_MAX; index++) {
		if (keys[index].what != NOTHING)
			continue;
		keys[index].what = what;
		keys[index].of = of;
		keys[index].tag++;
		return index << 8 | keys[index].tag;
	}
	return 0;
}

static void key_free(uint32_t key) { keys[key >> 8].what = NOTHING; }

static void *key_find(uint32_t key, enum what what)
{
	uint32_t index = key >> 8;
	if (index >= KEYS_MAX || keys[index].what != what)
		return NULL;
	if (what == REGION && keys[index].tag != (key & 0xff))
		return NULL;
	return keys[index].of;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));
	if (pd)
		pd->context = context;
	return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	int users = 0;
	world_enter();
	for (uint32_t index = 1; index < KEYS_MAX; index++) {
		if (keys[index].what == REGION)
			users += ((struct s_region *)keys[index].of)->region.pd == pd;
		if (keys[index].what == WINDOW)
			users += ((struct s_window *)keys[index].of)->window.pd == pd;
	}
	world_leave();
	if (users)
		return EBUSY;
	free(pd);
	return 0;
}

#undef ibv_reg_mr
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *address, size_t bytes, int access)
{
	struct s_region *made = calloc(1, sizeof(*made));
	if (!made)
		return NULL;
	world_enter();
	uint32_t key = 0;
	if (registered_bytes + bytes <= config.memlock_bytes)
		key = key_new(REGION, made);
	if (key) {
		registered_bytes += bytes;
		made->access = (unsigned)access;
		made->region.context = pd->context;
		made->region.pd = pd;
		made->region.addr = address;
		made->region.length = bytes;
		made->region.lkey = made->region.rkey = key;
	}
	world_leave();
	if (key)
		return &made->region;
	free(made);
	errno = ENOMEM;
	return NULL;
}

#undef ibv_reg_mr_iova
struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *address, size_t bytes, uint64_t iova, int access)
{
	if (iova != (uintptr_t)address) {
		errno = EINVAL;
		return NULL;
	}
	return ibv_reg_mr(pd, address, bytes, access);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *address, size_t bytes, uint64_t iova, unsigned access)
{
	return ibv_reg_mr_iova(pd, address, bytes, iova, (int)access);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	struct s_region *region = (struct s_region *)(void *)mr;
	world_enter();
	bool is_used = region->windows > 0;
	if (!is_used) {
		key_free(mr->lkey);
		registered_bytes -= mr->length;
	}
	world_leave();
	if (is_used)
		return EBUSY;
	free(region);
	return 0;
}

static bool covers(uint64_t first, uint64_t length, uint64_t address, uint64_t bytes)
{
	return address >= first && bytes <= length && address - first <= length - bytes;
}

bool local_key_opens(uint32_t key, uint64_t address, uint64_t bytes, unsigned access)
{
	struct s_region *region = key_find(key, REGION);
	return region && (region->access & access) == access && covers((uintptr_t)region->region.addr, region->region.length, address, bytes);
}

bool remote_key_opens(struct s_qp *qp, uint32_t key, uint64_t address, uint64_t bytes, unsigned access)
{
	if (bytes == 0)
		return true;
	if (local_key_opens(key, address, bytes, access))
		return ((struct s_region *)key_find(key, REGION))->region.pd == qp->plain.pd;
	struct s_window *window = key_find(key, WINDOW);
	return window && window->is_valid && window->key == key && window->qp == qp && (window->access & access) == access &&
	       covers(window->address, window->bytes, address, bytes);
}

/* ---- windows */

static struct ibv_mw *alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
	struct s_window *made = config.has_windows && type == IBV_MW_TYPE_2 ? calloc(1, sizeof(*made)) : NULL;
	if (!made) {
		errno = ENOMEM;
		return NULL;
	}
	world_enter();
	made->key = key_new(WINDOW, made);
	world_leave();
	made->window.context = pd->context;
	made->window.pd = pd;
	made->window.rkey = made->key;
	made->window.type = type;
	return &made->window;
}

static void window_clear(struct s_window *window)
{
	if (window->is_valid)
		window->region->windows--;
	window->is_valid = false;
	window->qp = NULL;
}

static int dealloc_mw(struct ibv_mw *mw)
{
	struct s_window *window = (struct s_window *)(void *)mw;
	world_enter();
	window_clear(window);
	key_free(window->key);
	world_leave();
	free(window);
	return 0;
}

/* As Linux's soft-RoCE has it: the caller names the window by its present key, and the new key must have another tag. */
enum ibv_wc_status window_bind(struct s_qp *qp, struct ibv_mw *mw, uint32_t present, uint32_t key, const struct ibv_mw_bind_info *info)
{
	struct s_window *window = (struct s_window *)(void *)mw;
	struct s_region *region = (struct s_region *)(void *)info->mr;
	unsigned wanted = info->mw_access_flags & (IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
	bool is_good = !window->is_valid && present == window->key && (key >> 8) == (window->key >> 8) && (key & 0xff) != (window->key & 0xff) &&
		       region->access & IBV_ACCESS_MW_BIND && region->region.pd == qp->plain.pd && mw->pd == qp->plain.pd && info->length > 0 &&
		       (!(wanted & IBV_ACCESS_REMOTE_WRITE) || region->access & IBV_ACCESS_LOCAL_WRITE) &&
		       covers((uintptr_t)region->region.addr, region->region.length, info->addr, info->length);
	if (!is_good)
		return IBV_WC_MW_BIND_ERR;
	window->key = key;
	window->region = region;
	window->qp = qp;
	window->address = info->addr;
	window->bytes = info->length;
	window->access = wanted;
	window->is_valid = true;
	region->windows++;
	return IBV_WC_SUCCESS;
}

bool window_invalidate(struct s_qp *qp, uint32_t key)
{
	struct s_window *window = key_find(key, WINDOW);
	if (!window || window->key != key || (window->is_valid && window->qp != qp))
		return false;
	window_clear(window);
	return true;
}

void windows_forget(struct s_qp *qp)
{
	for (uint32_t index = 1; index < KEYS_MAX; index++) {
		struct s_window *window = keys[index].what == WINDOW ? keys[index].of : NULL;
		if (window && window->qp == qp)
			window_clear(window);
	}
}

void memory_ops(struct ibv_context_ops *ops)
{
	if (!config.has_windows)
		return;
	ops->alloc_mw = alloc_mw;
	ops->dealloc_mw = dealloc_mw;
}
