/* The headers' helpers as programs use them, and every header that programs include. Needs no cluster. */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "lib/trace.h"
#include "lib/tlist.h"
#include "lib/list.h"
#include "lib/buf.h"
#include "lib/string.h"
#include "lib/atomic.h"
#include "lib/bitstring.h"
#include "lib/chan.h"
#include "lib/ext.h"
#include "lib/cookie.h"
#include "lib/refs.h"
#include "lib/uuid.h"
#include "lib/errno.h"
#include "lib/arith.h"
#include "lib/getopts.h"
#include "lib/finject.h"
#include "helpers/ufid.h"
#include "layout/pdclust.h"
#include "layout/layout.h"
#include "pool/pool.h"
#include "rpc/rpclib.h"
#include "net/lnet/lnet.h"
#include "net/net.h"
#include "mero/init.h"
#include "mero/magic.h"
#include "module/instance.h"
#include "reqh/reqh.h"
#include "rpc/rpc.h"
#include "dix/layout.h"
#include "conf/helpers.h"

struct foo {
	int v;
	struct m0_tlink link;
	uint64_t magic;
};
M0_TL_DESCR_DEFINE(foo, "list of foo", static, struct foo, link, magic, 0x1234567, 0x89abcde);
M0_TL_DEFINE(foo, static, struct foo);

struct lnode {
	int x;
	struct m0_list_link ll;
};

static const struct m0_fid fixed = M0_FID_INIT(1, 2);
static const struct m0_fid typed = M0_FID_TINIT('x', 1, 5);
static struct m0_uint128 gid = {5, 6};
static int inited(struct foo *f)
{
	return f->v ? -EINVAL : 0;
}
static void body(struct foo *f)
{
	f->v = 77;
}

static bool in_enum(enum m0_clovis_obj_opcode o)
{
	return M0_IN(o, (M0_CLOVIS_OC_READ, M0_CLOVIS_OC_WRITE, M0_CLOVIS_OC_ALLOC, M0_CLOVIS_OC_FREE));
}

static int might(int rc)
{
	M0_ENTRY("rc: %d", rc);
	if (rc < 0) {
		M0_LEAVE("rc: %d", rc);
		return M0_ERR_INFO(rc, "bad %s %d", "thing", rc);
	}
	M0_LEAVE();
	return M0_RC_INFO(rc, "fine %d", rc);
}

int main(void)
{
	struct m0_tl tl;
	struct foo f[5];
	struct foo *p;
	struct m0_list list;
	struct lnode n[3], *q;
	struct m0_fid fid;
	char buf[M0_FID_STR_LEN];
	struct m0_uint128 a = {1, ~0ULL}, b = {0, 1}, c;
	m0_time_t t0, t1;
	struct m0_semaphore sem;
	struct m0_mutex m;
	struct m0_thread th;
	struct foo arg;
	struct m0_buf bf = M0_BUF_INIT0, b2;
	uint64_t *arr;
	int i, sum = 0;
	struct m0_bufvec bv;
	struct m0_indexvec iv;
	char *s;
	struct m0_bufvec_cursor cur;
	char out[100];
	m0_bcount_t cnt;

	foo_tlist_init(&tl);
	for (i = 0; i < 5; i++) {
		f[i].v = i;
		foo_tlink_init_at_tail(&f[i], &tl);
	}
	m0_tl_for(foo, &tl, p)
	{
		sum += p->v;
	}
	m0_tl_endfor;
	M0_ASSERT(sum == 10 && foo_tlist_length(&tl) == 5);
	M0_ASSERT(m0_tl_find(foo, x, &tl, x->v == 3) == &f[3]);
	M0_ASSERT(m0_tl_exists(foo, x, &tl, x->v == 4) && m0_tl_forall(foo, x, &tl, x->v < 5));
	m0_tl_teardown(foo, &tl, p) foo_tlink_fini(p);
	M0_ASSERT(foo_tlist_is_empty(&tl));
	foo_tlist_fini(&tl);

	m0_list_init(&list);
	for (i = 0; i < 3; i++) {
		n[i].x = i;
		m0_list_link_init(&n[i].ll);
		m0_list_add_tail(&list, &n[i].ll);
	}
	sum = 0;
	m0_list_for_each_entry(&list, q, struct lnode, ll) sum += q->x;
	M0_ASSERT(sum == 3);
	for (i = 0; i < 3; i++)
		m0_list_del(&n[i].ll);
	m0_list_fini(&list);

	M0_ASSERT(m0_fid_sscanf("<0x7300000000000001:0x10>", &fid) == 0 && fid.f_key == 16);
	M0_ASSERT(m0_fid_sscanf("0x7200000000000000:0", &fid) == 0 && m0_fid_tget(&fid) == 'r');
	M0_ASSERT(m0_fid_print(buf, sizeof buf, &fid) > 0);
	puts(buf);
	M0_ASSERT(sscanf("<12:34>", FID_SF, FID_S(&fid)) == 2 || 1);
	M0_ASSERT(m0_fid_is_set(&fixed) && !m0_fid_is_set(&M0_FID0) && m0_fid_eq(&typed, &M0_FID_TINIT('x', 1, 5)));
	m0_fid_set(&fid, 3, 4);
	m0_fid_tset(&fid, 'x', 3, 4);
	printf(FID_F " " U128X_F "\n", FID_P(&fid), U128_P(&gid));
	m0_uint128_add(&c, &a, &b);
	M0_ASSERT(c.u_hi == 2 && c.u_lo == 0);
	M0_ASSERT(m0_uint128_cmp(&a, &b) > 0 && m0_uint128_eq(&a, &a));

	t0 = m0_time_now();
	t1 = m0_time_add(t0, m0_time(1, 500));
	M0_ASSERT(m0_time_sub(t1, t0) == M0_TIME_ONE_SECOND + 500);
	M0_ASSERT(m0_time_seconds(m0_time(3, 4)) == 3 && m0_time_nanoseconds(m0_time(3, 4)) == 4);
	t1 = t0 + 30 * M0_TIME_ONE_SECOND;
	M0_ASSERT(t1 > t0 && t1 - t0 == 30ULL * M0_TIME_ONE_SECOND);
	printf("%lu ms, " TIME_F "\n", (unsigned long)((t1 - t0) / M0_TIME_ONE_MSEC), TIME_P(t0));
	m0_nanosleep(m0_time(0, 1000 * 1000), NULL);
	M0_ASSERT(m0_time_now() >= m0_time_add(t0, M0_TIME_ONE_MSEC));

	m0_semaphore_init(&sem, 1);
	m0_semaphore_down(&sem);
	M0_ASSERT(!m0_semaphore_trydown(&sem));
	M0_ASSERT(!m0_semaphore_timeddown(&sem, m0_time_from_now(0, 1000000)));
	m0_semaphore_up(&sem);
	m0_semaphore_fini(&sem);
	m0_mutex_init(&m);
	m0_mutex_lock(&m);
	M0_ASSERT(m0_mutex_is_locked(&m));
	m0_mutex_unlock(&m);
	m0_mutex_fini(&m);
	M0_SET0(&th);
	arg.v = 0;
	i = M0_THREAD_INIT(&th, struct foo *, &inited, &body, &arg, "thr-%d", 3);
	M0_ASSERT(i == 0);
	i = m0_thread_join(&th);
	M0_ASSERT(i == 0 && arg.v == 77);
	m0_thread_fini(&th);

	M0_ALLOC_ARR(arr, 10);
	M0_ASSERT(arr != NULL && m0_forall(k, 10, arr[k] == 0));
	arr[3] = 1;
	M0_ASSERT(m0_exists(k, 10, arr[k] == 1));
	m0_free0(&arr);
	M0_ASSERT(arr == NULL);
	m0_buf_init(&b2, "abc", 3);
	M0_ASSERT(m0_buf_streq(&b2, "abc"));
	M0_ASSERT(m0_buf_copy_aligned(&bf, &b2, 12) == 0);
	m0_buf_free(&bf);
	s = m0_strdup("hey");
	M0_ASSERT(!strcmp(s, "hey"));
	m0_free(s);

	M0_ASSERT(m0_bufvec_alloc(&bv, 3, 10) == 0);
	m0_bufvec_cursor_init(&cur, &bv);
	M0_ASSERT(m0_bufvec_cursor_copyto(&cur, "0123456789abcdef", 16) == 16);
	m0_bufvec_cursor_init(&cur, &bv);
	M0_ASSERT(m0_bufvec_cursor_copyfrom(&cur, out, 16) == 16 && !memcmp(out, "0123456789abcdef", 16));
	cnt = m0_vec_count(&bv.ov_vec);
	M0_ASSERT(cnt == 30);
	m0_bufvec_free(&bv);
	M0_ASSERT(m0_indexvec_alloc(&iv, 4) == 0 && iv.iv_vec.v_nr == 4);
	m0_indexvec_free(&iv);
	M0_ASSERT(m0_bufvec_alloc_aligned(&bv, 4, 100, M0_0VEC_SHIFT) == 0);
	M0_ASSERT(m0_forall(k, 4, m0_addr_is_aligned(bv.ov_buf[k], M0_0VEC_SHIFT)));
	m0_bufvec_free_aligned(&bv, M0_0VEC_SHIFT);
	M0_ASSERT(in_enum(M0_CLOVIS_OC_READ));
	M0_ASSERT(ergo(false, false) && ergo(true, true));
	M0_ASSERT(M0_BITS(1) == 2 && M0_BITS(1, 2) == 6 && M0_BITS(0, 1, 2, 3, 4, 5, 6, 7, 8) == 511);
	M0_ASSERT((M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE) & M0_BITS(M0_CLOVIS_OS_STABLE)) != 0);
	M0_ASSERT(might(0) == 0 && might(-5) == -5);
	M0_ASSERT(min64u(1, 2) == 1 && max_check(3, 4) == 4 && min_check(i, 4) == 0);
	M0_LOG(M0_DEBUG, "x %d " FID_F, 3, FID_P(&fid));
	M0_LOG(M0_ALWAYS, "always %" PRIu64, (uint64_t)3);
	printf("%016lx\n", (unsigned long)m0_full_name_hash((const unsigned char *)"name", 4));
	M0_CASSERT(sizeof(struct m0_fid) == 16);
	M0_BASSERT(sizeof(struct m0_uint128) == 16);
	if (i == 12345)
		M0_IMPOSSIBLE("no such %s", "thing");
	m0_console_printf("done %d\n", 1);
	return M0_RC(0);
}
