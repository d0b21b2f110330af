/* The instance under its later name: see clovis/clovis_internal.h. */
#ifndef CLOVIS_INCLUDE_MOTR_CLIENT_INTERNAL_H
#define CLOVIS_INCLUDE_MOTR_CLIENT_INTERNAL_H

#include "motr/client.h"
#include "clovis/clovis_internal.h"

#endif
