/* A short life: one object, one write, one read. */
#include "support.h"

int main(int argc, char **argv)
{
	struct m0_clovis_obj obj;
	struct io io;

	test_begin(argc, argv);
	object_create(&obj, test_id(9000), 1);
	io_alloc(&io, 2, BLOCK, 0);
	io_fill(&io, 4);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_WRITE, &io), 0);
	CHECK_EQ(io_run(&obj, M0_CLOVIS_OC_READ, &io), 0);
	CHECK(io_is_filled(&io, 4));
	io_free(&io);
	object_delete(&obj);
	test_end();
	return 0;
}
