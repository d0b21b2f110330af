/* Operations: callbacks, waiting, launches of many, reuse of memory, cancelling, sync, threads. */
#include "support.h"
#include "lib/semaphore.h"
#include "lib/thread.h"
#include "lib/mutex.h"

struct seen {
	struct m0_semaphore done;
	int executed, stable, failed;
	uint32_t state_in_callback;
	pthread_t thread;
};

static void on_executed(struct m0_clovis_op *op)
{
	struct seen *seen = (struct seen *)op->op_datum;

	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_EXECUTED);
	CHECK_EQ(seen->stable, 0);
	seen->executed++;
	seen->thread = pthread_self();
}

static void on_stable(struct m0_clovis_op *op)
{
	struct seen *seen = (struct seen *)op->op_datum;

	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_STABLE);
	CHECK_EQ(seen->executed, 1);
	seen->stable++;
	/* A callback that waits would wait for its own thread. */
	CHECK_EQ(m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED), M0_TIME_NEVER), -EDEADLK);
	m0_semaphore_up(&seen->done);
}

static void on_failed(struct m0_clovis_op *op)
{
	struct seen *seen = (struct seen *)op->op_datum;

	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_FAILED);
	seen->failed++;
	m0_semaphore_up(&seen->done);
}

static const struct m0_clovis_op_ops callbacks = {on_executed, on_failed, on_stable};

/* fini and free right after the semaphore, while the library's thread may still be on its way out of the callback. */
static void callbacks_and_an_early_free(struct m0_clovis_obj *obj)
{
	struct m0_clovis_op *op;
	struct seen seen;
	struct io io;
	int i;

	io_alloc(&io, 1, BLOCK, 0);
	for (i = 0; i < 50; ++i) {
		memset(&seen, 0, sizeof seen);
		CHECK_EQ(m0_semaphore_init(&seen.done, 0), 0);
		op = NULL;
		CHECK_EQ(m0_clovis_obj_op(obj, i % 2 ? M0_CLOVIS_OC_READ : M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), 0);
		op->op_datum = &seen;
		m0_clovis_op_setup(op, &callbacks, 0);
		m0_clovis_op_launch(&op, 1);
		m0_semaphore_down(&seen.done);
		m0_clovis_op_fini(op);
		m0_clovis_op_free(op);
		CHECK(seen.executed == 1 && seen.stable == 1 && seen.failed == 0);
		CHECK(!pthread_equal(seen.thread, pthread_self()));
		m0_semaphore_fini(&seen.done);
	}
	io_free(&io);
}

/* While a callback runs its operation is still the library's: it cannot be given back or used again, and goes on. */
struct held {
	struct m0_semaphore entered, may_leave;
};

static void hold(struct m0_clovis_op *op)
{
	struct held *held = (struct held *)op->op_datum;

	m0_semaphore_up(&held->entered);
	m0_semaphore_down(&held->may_leave);
}

static void an_operation_on_its_way_stays(struct m0_clovis_obj *obj)
{
	static const struct m0_clovis_op_ops holding = {hold, NULL, NULL};
	struct m0_clovis_op *op = NULL, *again;
	struct held held;
	struct io io;

	io_alloc(&io, 1, BLOCK, 0);
	CHECK_EQ(m0_semaphore_init(&held.entered, 0), 0);
	CHECK_EQ(m0_semaphore_init(&held.may_leave, 0), 0);
	/* Never launched: given back as it is. */
	CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), 0);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	op = NULL;
	CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), 0);
	op->op_datum = &held;
	m0_clovis_op_setup(op, &holding, 0);
	m0_clovis_op_launch(&op, 1);
	m0_semaphore_down(&held.entered);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	again = op;
	CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &again), -EBUSY);
	CHECK(again == op);
	m0_clovis_op_launch(&op, 1);
	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_EXECUTED);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, m0_time_from_now(0, M0_TIME_ONE_MSEC)), -ETIMEDOUT);
	m0_semaphore_up(&held.may_leave);
	CHECK_EQ(op_run(op, NULL), 0);
	m0_semaphore_fini(&held.entered);
	m0_semaphore_fini(&held.may_leave);
	io_free(&io);
}

/* An operation that is given back by its own callback, which launches the next one. */
struct chain {
	struct m0_clovis_obj *obj;
	struct io io;
	int left;
	struct m0_semaphore done;
};

static void chain_next(struct m0_clovis_op *op);
static const struct m0_clovis_op_ops chain_callbacks = {NULL, NULL, chain_next};

static void chain_launch(struct chain *chain)
{
	struct m0_clovis_op *op = NULL;

	CHECK_EQ(m0_clovis_obj_op(chain->obj, M0_CLOVIS_OC_WRITE, &chain->io.ext, &chain->io.data, &chain->io.attr, 0, &op), 0);
	op->op_datum = chain;
	m0_clovis_op_setup(op, &chain_callbacks, 0);
	m0_clovis_op_launch(&op, 1);
}

static void chain_next(struct m0_clovis_op *op)
{
	struct chain *chain = (struct chain *)op->op_datum;

	CHECK_EQ(op->op_rc, 0);
	m0_clovis_op_fini(op);
	m0_clovis_op_free(op);
	if (--chain->left > 0)
		chain_launch(chain);
	else
		m0_semaphore_up(&chain->done);
}

static void operations_out_of_callbacks(struct m0_clovis_obj *obj)
{
	struct chain chain;

	chain.obj = obj;
	chain.left = 20;
	CHECK_EQ(m0_semaphore_init(&chain.done, 0), 0);
	io_alloc(&chain.io, 2, BLOCK, 8 * BLOCK);
	chain_launch(&chain);
	CHECK(m0_semaphore_timeddown(&chain.done, m0_time_from_now(60, 0)));
	m0_semaphore_fini(&chain.done);
	io_free(&chain.io);
}

static void waiting(struct m0_clovis_obj *obj)
{
	struct m0_clovis_op *op = NULL;
	struct io io;
	m0_time_t before;

	io_alloc(&io, 1, BLOCK, 0);
	CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &op), 0);
	CHECK_EQ(op->op_code, M0_CLOVIS_OC_WRITE);
	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_INITIALISED);
	/* Not launched: time passes. */
	before = m0_time_now();
	CHECK_EQ(m0_clovis_op_wait(op, OVER, m0_time_from_now(0, 50 * M0_TIME_ONE_MSEC)), -ETIMEDOUT);
	CHECK(m0_time_sub(m0_time_now(), before) >= 50 * (m0_time_t)M0_TIME_ONE_MSEC);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, M0_TIME_IMMEDIATELY), -ETIMEDOUT);
	CHECK_EQ(m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_INITIALISED), M0_TIME_NEVER), -EINVAL);
	CHECK_EQ(m0_clovis_op_wait(op, 0, M0_TIME_NEVER), -EINVAL);
	CHECK_EQ(m0_clovis_op_wait(NULL, OVER, M0_TIME_NEVER), -EINVAL);
	m0_clovis_op_kick(op);
	m0_clovis_op_launch(&op, 1);
	CHECK_EQ(m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_LAUNCHED), M0_TIME_NEVER), 0);
	CHECK_EQ(m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_EXECUTED), M0_TIME_NEVER), 0);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, M0_TIME_NEVER), 0);
	CHECK_EQ(m0_clovis_op_wait(op, OVER, M0_TIME_NEVER), 0);
	/* Over, and in no state that is asked for. */
	CHECK_EQ(m0_clovis_op_wait(op, M0_BITS(M0_CLOVIS_OS_FAILED), M0_TIME_NEVER), -ESRCH);
	CHECK_EQ(m0_clovis_rc(op), 0);
	CHECK_EQ(op->op_count, BLOCK);
	/* Launched a second time: left as it is. */
	m0_clovis_op_launch(&op, 1);
	CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_STABLE);
	m0_clovis_op_setup(op, NULL, 0);
	/* Used again: cleared, and the same memory. */
	{
		struct m0_clovis_op *again = op;

		CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_READ, &io.ext, &io.data, &io.attr, 0, &again), 0);
		CHECK(again == op);
		CHECK_EQ(op->op_sm.sm_state, M0_CLOVIS_OS_INITIALISED);
		CHECK_EQ(op->op_code, M0_CLOVIS_OC_READ);
		CHECK_EQ(op->op_count, 0);
	}
	CHECK_EQ(op_run(op, NULL), 0);
	io_free(&io);
}

static void memory_of_the_caller(struct m0_clovis_obj *obj)
{
	struct m0_clovis_op *op = (struct m0_clovis_op *)m0_alloc(m0_clovis_op_maxsize());
	struct m0_clovis_op small, *slot = &small;
	struct io io;
	int i;

	io_alloc(&io, 1, BLOCK, 0);
	memset(&small, 0, sizeof small);
	small.op_size = sizeof small;
	CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &slot), -EMSGSIZE);
	CHECK(slot == &small);
	CHECK(op != NULL && m0_clovis_op_maxsize() > sizeof small);
	op->op_size = m0_clovis_op_maxsize();
	for (i = 0; i < 5; ++i) {
		slot = op;
		CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &slot), 0);
		CHECK(slot == op);
		m0_clovis_op_launch(&slot, 1);
		CHECK_EQ(m0_clovis_op_wait(op, OVER, M0_TIME_NEVER), 0);
		CHECK_EQ(m0_clovis_rc(op), 0);
		if (i % 2)
			m0_clovis_op_fini(op);
	}
	m0_clovis_op_fini(op);
	m0_free(op);
	io_free(&io);
}

static void launches_of_many(struct m0_clovis_obj *obj)
{
	enum { OPS = 200 };
	struct m0_clovis_op *ops[OPS] = {NULL};
	struct io io[OPS];
	int i;

	for (i = 0; i < OPS; ++i) {
		io_alloc(&io[i], 1, BLOCK, (m0_bindex_t)i * BLOCK);
		io_fill(&io[i], i);
		CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io[i].ext, &io[i].data, &io[i].attr, 0, &ops[i]), 0);
	}
	m0_clovis_op_launch(ops, OPS);
	for (i = OPS - 1; i >= 0; --i) {
		CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, M0_TIME_NEVER), 0);
		CHECK_EQ(m0_clovis_rc(ops[i]), 0);
	}
	for (i = 0; i < OPS; ++i) {
		io_fill(&io[i], 1000);
		CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_READ, &io[i].ext, &io[i].data, &io[i].attr, 0, &ops[i]), 0);
	}
	m0_clovis_op_launch(ops, OPS);
	for (i = 0; i < OPS; ++i) {
		CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, M0_TIME_NEVER), 0);
		CHECK_EQ(m0_clovis_rc(ops[i]), 0);
		CHECK(io_is_filled(&io[i], i));
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		io_free(&io[i]);
	}
}

static void cancelling(struct m0_clovis_obj *obj)
{
	enum { OPS = 40 };
	struct m0_clovis_op *ops[OPS] = {NULL};
	struct io io[OPS];
	int i, cancelled = 0, rc;

	for (i = 0; i < OPS; ++i) {
		io_alloc(&io[i], 4, 64 * BLOCK, (m0_bindex_t)i * 256 * BLOCK);
		CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io[i].ext, &io[i].data, &io[i].attr, 0, &ops[i]), 0);
	}
	/* One before its launch: it ends as soon as it is launched. */
	m0_clovis_op_cancel(&ops[0], 1);
	m0_clovis_op_launch(ops, OPS);
	CHECK(!ops[1]->op_cancelling);
	m0_clovis_op_cancel(ops, OPS);
	for (i = 0; i < OPS; ++i) {
		CHECK(ops[i]->op_cancelling);
		CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, m0_time_from_now(60, 0)), 0);
		rc = m0_clovis_rc(ops[i]);
		CHECK(rc == 0 || rc == -ECANCELED);
		CHECK_EQ(ops[i]->op_sm.sm_state, rc == 0 ? M0_CLOVIS_OS_STABLE : M0_CLOVIS_OS_FAILED);
		if (i == 0)
			CHECK_EQ(rc, -ECANCELED);
		cancelled += rc != 0;
		/* The buffers are the caller's again. */
		io_fill(&io[i], 0);
		m0_clovis_op_cancel(&ops[i], 1);
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		io_free(&io[i]);
	}
	CHECK(cancelled >= OPS / 2);
	/* The object goes on. */
	{
		struct io after;

		io_alloc(&after, 1, BLOCK, 0);
		io_fill(&after, 1);
		CHECK_EQ(io_run(obj, M0_CLOVIS_OC_WRITE, &after), 0);
		CHECK_EQ(io_run(obj, M0_CLOVIS_OC_READ, &after), 0);
		CHECK(io_is_filled(&after, 1));
		io_free(&after);
	}
}

static void syncing(struct m0_clovis_obj *obj)
{
	enum { OPS = 10 };
	struct m0_clovis_op *ops[OPS] = {NULL}, *sync = NULL;
	struct io io[OPS];
	int i, round;

	for (i = 0; i < OPS; ++i)
		io_alloc(&io[i], 1, 16 * BLOCK, (m0_bindex_t)i * 16 * BLOCK);
	for (round = 0; round < 4; ++round) {
		for (i = 0; i < OPS; ++i)
			CHECK_EQ(m0_clovis_obj_op(obj, M0_CLOVIS_OC_WRITE, &io[i].ext, &io[i].data, &io[i].attr, 0, &ops[i]), 0);
		if (round == 0) {
			CHECK_EQ(m0_clovis_sync_op_init(&sync), 0);
			CHECK_EQ(m0_clovis_sync_op_add(sync, ops[0]), -EINVAL); /* not launched */
		}
		m0_clovis_op_launch(ops, OPS);
		switch (round) {
		case 0:
			CHECK_EQ(m0_clovis_sync_op_add(sync, ops[OPS - 1]), 0);
			CHECK_EQ(m0_clovis_sync_entity_add(sync, &obj->ob_entity), 0);
			CHECK_EQ(sync->op_code, M0_CLOVIS_EO_SYNC);
			CHECK_EQ(op_run(sync, NULL), 0);
			break;
		case 1:
			CHECK_EQ(m0_clovis_entity_sync(&obj->ob_entity), 0);
			break;
		case 2:
			CHECK_EQ(m0_clovis_sync(test_instance, false), 0);
			/* fall through */
		default:
			CHECK_EQ(m0_clovis_sync(test_instance, true), 0);
		}
		for (i = 0; i < OPS; ++i)
			CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, round < 4 ? m0_time_from_now(20, 0) : 0), 0);
	}
	/* A sync of nothing is over at once. */
	sync = NULL;
	CHECK_EQ(m0_clovis_sync_op_init(&sync), 0);
	CHECK_EQ(op_run(sync, NULL), 0);
	for (i = 0; i < OPS; ++i) {
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		io_free(&io[i]);
	}
}

struct worker {
	struct m0_thread thread;
	unsigned number;
};
enum { WORKERS = 8, ROUNDS = 12 };

static void work(struct worker *worker)
{
	struct m0_clovis_obj obj;
	struct io io;
	struct m0_thread adopted;
	int i;

	CHECK_EQ(m0_thread_adopt(&adopted, test_instance->m0c_mero), 0);
	CHECK(m0_thread_tls() != NULL);
	object_create(&obj, test_id(5000 + worker->number), 1);
	io_alloc(&io, 3, BLOCK, worker->number * BLOCK);
	for (i = 0; i < ROUNDS; ++i) {
		io_fill(&io, worker->number * 100 + i);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
		io_fill(&io, 7);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
		CHECK(io_is_filled(&io, worker->number * 100 + i));
	}
	io_free(&io);
	object_delete(&obj);
	m0_thread_shun();
}

static void many_threads(void)
{
	struct worker workers[WORKERS];
	unsigned i;

	memset(workers, 0, sizeof workers);
	for (i = 0; i < WORKERS; ++i) {
		workers[i].number = i;
		CHECK_EQ(M0_THREAD_INIT(&workers[i].thread, struct worker *, NULL, &work, &workers[i], "worker%u", i), 0);
	}
	for (i = 0; i < WORKERS; ++i) {
		CHECK_EQ(m0_thread_join(&workers[i].thread), 0);
		m0_thread_fini(&workers[i].thread);
	}
}

/* Operations that nobody waited for: fini ends them, and their buffers may go afterwards. */
static void fini_with_operations_on_their_way(char **argv)
{
	struct m0_clovis_config config;
	struct m0_clovis *second;
	struct m0_clovis_container container;
	struct m0_clovis_obj obj;
	struct m0_clovis_op *ops[8] = {NULL}, *op = NULL;
	struct m0_uint128 id = test_id(7000);
	struct io io;
	int i;

	config_fill(&config, argv[1], argv[2]);
	/* The endpoint is the first instance's: this one chooses another. */
	CHECK_EQ(m0_clovis_init(&second, &config, false), 0);
	m0_clovis_container_init(&container, NULL, &M0_CLOVIS_UBER_REALM, second);
	m0_clovis_obj_init(&obj, &container.co_realm, &id, 0);
	CHECK_EQ(m0_clovis_entity_create(NULL, &obj.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, NULL), 0);
	io_alloc(&io, 4, 256 * BLOCK, 0);
	for (i = 0; i < 8; ++i)
		CHECK_EQ(m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &io.ext, &io.data, &io.attr, 0, &ops[i]), 0);
	m0_clovis_op_launch(ops, 8);
	m0_clovis_fini(second, false);
	for (i = 0; i < 8; ++i) {
		CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, M0_TIME_IMMEDIATELY), 0);
		CHECK(m0_clovis_rc(ops[i]) == 0 || m0_clovis_rc(ops[i]) == -ECANCELED);
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
	}
	io_free(&io);
	/* The first instance still works. */
	m0_clovis_obj_init(&obj, test_realm, &id, 0);
	op = NULL;
	CHECK_EQ(m0_clovis_entity_delete(&obj.ob_entity, &op), 0);
	CHECK_EQ(op_run(op, &i), 0);
	CHECK_EQ(i, 0);
	m0_clovis_obj_fini(&obj);
}

int main(int argc, char **argv)
{
	struct m0_clovis_obj obj;

	test_begin(argc, argv);
	object_create(&obj, test_id(4000), 1);
	callbacks_and_an_early_free(&obj);
	an_operation_on_its_way_stays(&obj);
	operations_out_of_callbacks(&obj);
	waiting(&obj);
	memory_of_the_caller(&obj);
	launches_of_many(&obj);
	cancelling(&obj);
	syncing(&obj);
	object_delete(&obj);
	many_threads();
	fini_with_operations_on_their_way(argv);
	test_end();
	return 0;
}
