/* The helpers that programs lean on: vectors, memory, time, fids, locks, threads, buffers, lists, traces, ids. No cluster is needed. */
#define M0_TRACE_SUBSYSTEM M0_TRACE_SUBSYS_CLOVIS
#include "lib/trace.h"
#include "lib/assert.h"
#include "lib/atomic.h"
#include "lib/buf.h"
#include "lib/memory.h"
#include "lib/misc.h"
#include "lib/mutex.h"
#include "lib/refs.h"
#include "lib/semaphore.h"
#include "lib/string.h"
#include "lib/thread.h"
#include "lib/time.h"
#include "lib/tlist.h"
#include "lib/types.h"
#include "lib/vec.h"
#include "conf/obj.h"
#include "fid/fid.h"
#include "helpers/ufid.h"
#include "mero/init.h"
#include "module/instance.h"

struct item {
	int number;
	struct m0_tlink link;
	uint64_t magic;
};
M0_TL_DESCR_DEFINE(items, "items", static, struct item, link, magic, 0x1234, 0x5678);
M0_TL_DEFINE(items, static, struct item);

static void lists(void)
{
	struct item many[5], *item;
	struct m0_tl list;
	int i, sum = 0;

	items_tlist_init(&list);
	for (i = 0; i < 5; ++i) {
		many[i].number = i;
		items_tlink_init(&many[i]);
		items_tlist_add_tail(&list, &many[i]);
	}
	M0_ASSERT(items_tlist_length(&list) == 5 && items_tlist_head(&list) == &many[0] && items_tlist_tail(&list) == &many[4]);
	m0_tl_for(items, &list, item) {
		sum += item->number;
		if (item->number % 2)
			items_tlist_del(item);
	} m0_tl_endfor;
	M0_ASSERT(sum == 10 && items_tlist_length(&list) == 3 && !items_tlink_is_in(&many[1]));
	m0_tl_teardown(items, &list, item)
		items_tlink_fini(item);
	items_tlist_fini(&list);
}

static void vectors(void)
{
	struct m0_bufvec vec, other;
	struct m0_indexvec ext;
	struct m0_bufvec_cursor from, to;
	char bytes[10000];
	size_t i;

	M0_ASSERT(m0_bufvec_alloc(&vec, 3, 5000) == 0);
	M0_ASSERT(vec.ov_vec.v_nr == 3 && m0_vec_count(&vec.ov_vec) == 15000);
	M0_ASSERT(m0_forall(s, 3, m0_addr_is_aligned(vec.ov_buf[s], M0_0VEC_SHIFT)));
	M0_ASSERT(m0_bufvec_alloc_aligned(&other, 2, 10000, M0_0VEC_SHIFT) == 0);
	for (i = 0; i < sizeof bytes; ++i)
		bytes[i] = (char)(i * 3);
	m0_bufvec_cursor_init(&to, &vec);
	M0_ASSERT(m0_bufvec_cursor_copyto(&to, bytes, sizeof bytes) == sizeof bytes);
	m0_bufvec_cursor_init(&from, &vec);
	m0_bufvec_cursor_init(&to, &other);
	M0_ASSERT(m0_bufvec_cursor_copy(&to, &from, 12345) == 12345);
	M0_ASSERT(m0_bufvec_cursor_step(&to) == 20000 - 12345 && !m0_bufvec_cursor_move(&to, 1));
	M0_ASSERT(m0_bufvec_cursor_addr(&to) == (char *)other.ov_buf[1] + 2346);
	M0_ASSERT(memcmp(other.ov_buf[0], bytes, sizeof bytes) == 0);
	m0_bufvec_free_aligned(&other, M0_0VEC_SHIFT);
	M0_ASSERT(m0_bufvec_empty_alloc(&other, 2) == 0 && other.ov_buf[0] == NULL && other.ov_vec.v_count[1] == 0);
	m0_bufvec_free2(&other);
	m0_bufvec_free(&vec);
	M0_ASSERT(m0_indexvec_alloc(&ext, 7) == 0 && ext.iv_vec.v_nr == 7 && ext.iv_index[6] == 0);
	m0_indexvec_free(&ext);
}

static void numbers(void)
{
	struct m0_uint128 a = {0, UINT64_MAX}, b = {1, 1}, sum;
	m0_bcount_t count;
	int rc = -ENOENT;

	m0_uint128_add(&sum, &a, &b);
	M0_ASSERT(sum.u_hi == 2 && sum.u_lo == 0 && m0_uint128_cmp(&a, &b) < 0 && !m0_uint128_eq(&a, &b));
	M0_ASSERT(M0_IN(rc, (0, -EEXIST, -ENOENT)) && !M0_IN(rc, (0, 1)));
	M0_ASSERT(M0_BITS(1, 3) == 10 && ergo(rc == 0, false) && equi(true, rc != 0));
	M0_ASSERT(m0_exists(i, 10, i == 7) && !m0_exists(i, 10, i == 70));
	M0_ASSERT(min64u(3, 4) == 3 && max_check(3, 4) == 4 && m0_round_up(4097, 4096) == 8192 && m0_is_po2(64));
	M0_ASSERT(m0_bcount_get("64k", &count) == 0 && count == 65536 && m0_bcount_get("x", &count) == -EINVAL);
	M0_ASSERT(m0_full_name_hash((const unsigned char *)"abc", 3) != m0_full_name_hash((const unsigned char *)"abd", 3));
	M0_ASSERT(M0_RC(rc) == -ENOENT);
}

static void times(void)
{
	m0_time_t now = m0_time_now(), later = m0_time_from_now(1, 500 * M0_TIME_ONE_MSEC);

	M0_ASSERT(later > now && m0_time_seconds(m0_time(3, 7)) == 3 && m0_time_nanoseconds(m0_time(3, 7)) == 7);
	M0_ASSERT(m0_time_sub(m0_time_add(now, M0_TIME_ONE_SECOND), now) == (m0_time_t)M0_TIME_ONE_SECOND);
	M0_ASSERT(m0_time_add(M0_TIME_NEVER, 5) == M0_TIME_NEVER && M0_TIME_IMMEDIATELY == 0);
	M0_ASSERT(now > m0_time(1500000000, 0)); /* the system's clock */
	M0_ASSERT(m0_nanosleep(m0_time(0, 1000), NULL) == 0);
}

static void fids(void)
{
	struct m0_fid fid = M0_FID_TINIT('x', 1, 5), other = M0_FID0;
	char text[M0_FID_STR_LEN];

	M0_ASSERT(m0_fid_tget(&fid) == 'x' && fid.f_container == 0x7800000000000001ULL && m0_fid_is_set(&fid) && !m0_fid_is_set(&other));
	M0_ASSERT(m0_fid_print(text, sizeof text, &fid) == (int)strlen(text) && m0_fid_sscanf(text, &other) == 0);
	M0_ASSERT(m0_fid_eq(&fid, &other) && m0_fid_is_valid(&fid) && m0_conf_fid_is_valid(&fid));
	M0_ASSERT(m0_fid_sscanf("0x7000000000000001:0", &other) == 0 && m0_fid_tget(&other) == 'p');
	M0_ASSERT(m0_fid_sscanf("rubbish", &other) == -EINVAL);
	m0_fid_tset(&other, 'r', 2, 3);
	M0_ASSERT(other.f_container == 0x7200000000000002ULL && other.f_key == 3);
	snprintf(text, sizeof text, FID_F, FID_P(&fid));
	M0_ASSERT(m0_streq(text, "<7800000000000001:5>"));
	M0_ASSERT(sscanf(text, FID_SF, FID_S(&other)) == 2 && m0_fid_eq(&fid, &other));
}

static void buffers(void)
{
	struct m0_buf buf = M0_BUF_INIT0, copy = M0_BUF_INIT0;
	char *text = m0_strdup("clovis"), *twin;
	uint64_t *array, *one;

	m0_buf_init(&buf, text, (uint32_t)strlen(text));
	M0_ASSERT(m0_buf_streq(&buf, "clovis") && m0_buf_is_set(&buf) && !m0_buf_is_set(&copy));
	M0_ASSERT(m0_buf_copy_aligned(&copy, &buf, 12) == 0 && m0_buf_eq(&copy, &buf) && m0_addr_is_aligned(copy.b_addr, 12));
	m0_free_aligned(copy.b_addr, copy.b_nob, 12);
	twin = m0_buf_strdup(&buf);
	M0_ASSERT(m0_streq(twin, text) && m0_startswith("clo", twin));
	m0_free(twin);
	m0_buf_free(&buf);
	M0_ASSERT(buf.b_addr == NULL);
	M0_ALLOC_ARR(array, 100);
	M0_ALLOC_PTR(one);
	M0_ASSERT(array != NULL && one != NULL && *one == 0 && m0_forall(i, 100, array[i] == 0));
	*one = 1;
	M0_SET0(one);
	M0_ASSERT(*one == 0 && M0_IS0(one));
	m0_free(array);
	m0_free0(&one);
	M0_ASSERT(one == NULL);
}

struct shared {
	struct m0_mutex lock;
	struct m0_semaphore go, done;
	struct m0_atomic64 atomic;
	int plain;
};

static int worker_init(struct shared *shared)
{
	m0_atomic64_inc(&shared->atomic);
	return 0;
}

static void worker(struct shared *shared)
{
	int i;

	m0_semaphore_down(&shared->go);
	for (i = 0; i < 1000; ++i) {
		m0_mutex_lock(&shared->lock);
		shared->plain++;
		m0_mutex_unlock(&shared->lock);
	}
	m0_semaphore_up(&shared->done);
}

static int refusing_init(struct shared *shared)
{
	(void)shared;
	return -EPERM;
}

static void threads(void)
{
	enum { THREADS = 4 };
	struct m0_thread many[THREADS], adopted;
	struct shared shared;
	int i;

	memset(&shared, 0, sizeof shared);
	memset(many, 0, sizeof many);
	m0_mutex_init(&shared.lock);
	m0_semaphore_init(&shared.go, 0);
	m0_semaphore_init(&shared.done, 0);
	for (i = 0; i < THREADS; ++i)
		M0_ASSERT(M0_THREAD_INIT(&many[i], struct shared *, &worker_init, &worker, &shared, "w%d", i) == 0);
	M0_ASSERT(m0_atomic64_get(&shared.atomic) == THREADS);
	M0_ASSERT(!m0_semaphore_trydown(&shared.done) && !m0_semaphore_timeddown(&shared.done, m0_time_from_now(0, 1000000)));
	for (i = 0; i < THREADS; ++i)
		m0_semaphore_up(&shared.go);
	for (i = 0; i < THREADS; ++i)
		m0_semaphore_down(&shared.done);
	for (i = 0; i < THREADS; ++i) {
		M0_ASSERT(m0_thread_join(&many[i]) == 0);
		m0_thread_fini(&many[i]);
	}
	M0_ASSERT(shared.plain == 1000 * THREADS && m0_semaphore_value(&shared.go) == 0);
	M0_ASSERT(M0_THREAD_INIT(&many[0], struct shared *, &refusing_init, &worker, &shared, "no") == -EPERM);
	m0_mutex_lock(&shared.lock);
	M0_ASSERT(m0_mutex_is_locked(&shared.lock) && m0_mutex_trylock(&shared.lock) == -EBUSY);
	m0_mutex_unlock(&shared.lock);
	M0_ASSERT(m0_mutex_is_not_locked(&shared.lock));
	m0_mutex_fini(&shared.lock);
	m0_semaphore_fini(&shared.go);
	m0_semaphore_fini(&shared.done);
	M0_ASSERT(m0_thread_adopt(&adopted, m0_get()) == 0 && m0_thread_tls()->tls_m0_instance == m0_get());
	m0_thread_shun();
}

int main(void)
{
	static struct m0 instance;

	M0_ENTRY();
	M0_ENTRY("pid %d", 1);
	m0_trace_set_mmapped_buffer(false);
	M0_ASSERT(m0_init(&instance) == 0);
	lists();
	vectors();
	numbers();
	times();
	fids();
	buffers();
	threads();
	M0_LOG(M0_DEBUG, "not shown: %d", 3);
	m0_fini();
	M0_LEAVE("rc %d", 0);
	return M0_RC(0);
}
