/* c0rm (c0unlink): deletes objects. */
#include "c0.h"
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct c0 c0;
	struct m0_clovis_obj obj;
	uint64_t index;
	int rc, status = EXIT_SUCCESS;

	c0_begin(&c0, argc, argv, 0, "c0rm [OPTIONS]");
	for (index = 0; index < c0.args.objects && status == EXIT_SUCCESS; ++index) {
		rc = c0_open(&c0, &obj, index);
		if (rc == 0)
			rc = c0_delete(&c0, &obj);
		if (rc != 0)
			status = c0_failed(&c0, rc, "cannot be deleted");
		m0_clovis_obj_fini(&obj);
	}
	c0_end(&c0);
	return status;
}
