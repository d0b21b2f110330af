/*
 * A cluster that goes away: SERVERS LOCAL HA FOLDER. Writes, says so by making FOLDER/ready, waits until FOLDER/gone is there (the
 * servers are dead then), and looks: operations fail within their time, a cancel ends one at once, nothing hangs, fini returns.
 * With a fourth word "some" only as many servers died as the layout survives: everything still works.
 */
#include "support.h"
#include <unistd.h>

static void touch(const char *folder, const char *name)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	file = fopen(path, "w");
	CHECK(file != NULL);
	fclose(file);
}

static void wait_for(const char *folder, const char *name)
{
	char path[512];
	m0_time_t until = m0_time_from_now(60, 0);

	snprintf(path, sizeof path, "%s/%s", folder, name);
	while (access(path, F_OK) != 0) {
		CHECK(!m0_time_is_in_past(until));
		m0_nanosleep(m0_time(0, 10 * M0_TIME_ONE_MSEC), NULL);
	}
}

int main(int argc, char **argv)
{
	enum { OPS = 12 };
	struct m0_clovis_obj obj;
	struct m0_clovis_op *ops[OPS] = {NULL};
	struct io io[OPS];
	bool some = argc > 4 && strcmp(argv[4], "some") == 0;
	int i, rc;

	test_begin(argc, argv);
	object_create(&obj, test_id(1), 1);
	for (i = 0; i < OPS; ++i) {
		io_alloc(&io[i], 4, 4 * BLOCK, (m0_bindex_t)i * 16 * BLOCK);
		io_fill(&io[i], i);
		CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io[i]), 0);
	}
	touch(argv[3], "ready");
	wait_for(argv[3], "gone");
	if (some) {
		for (i = 0; i < OPS; ++i) {
			io_fill(&io[i], 99);
			CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io[i]), 0);
			CHECK(io_is_filled(&io[i], i));
		}
	} else {
		m0_time_t before = m0_time_now();

		for (i = 0; i < OPS; ++i)
			CHECK_EQ(m0_clovis_obj_op(&obj, i % 2 ? M0_CLOVIS_OC_READ : M0_CLOVIS_OC_WRITE, &io[i].ext, &io[i].data,
						  &io[i].attr, 0, &ops[i]), 0);
		m0_clovis_op_launch(ops, OPS);
		/* Half of them are cancelled, and end well before the others' time is over. */
		m0_clovis_op_cancel(ops, OPS / 2);
		for (i = 0; i < OPS / 2; ++i) {
			CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, m0_time_from_now(30, 0)), 0);
			CHECK_EQ(m0_clovis_rc(ops[i]), -ECANCELED);
		}
		for (i = OPS / 2; i < OPS; ++i) {
			CHECK_EQ(m0_clovis_op_wait(ops[i], OVER, m0_time_from_now(60, 0)), 0);
			rc = m0_clovis_rc(ops[i]);
			CHECK(rc == -ETIMEDOUT || rc == -EIO);
			CHECK_EQ(ops[i]->op_rc, rc);
			CHECK_EQ(ops[i]->op_sm.sm_state, M0_CLOVIS_OS_FAILED);
		}
		CHECK(m0_time_sub(m0_time_now(), before) < m0_time(60, 0));
		for (i = 0; i < OPS; ++i) {
			m0_clovis_op_fini(ops[i]);
			m0_clovis_op_free(ops[i]);
		}
	}
	for (i = 0; i < OPS; ++i)
		io_free(&io[i]);
	m0_clovis_obj_fini(&obj);
	test_end();
	return 0;
}
