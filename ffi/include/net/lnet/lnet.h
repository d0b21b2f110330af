/* The network's constants: see net/net.h. */
#ifndef CLOVIS_INCLUDE_NET_LNET_LNET_H
#define CLOVIS_INCLUDE_NET_LNET_LNET_H

#include "net/net.h"

#endif
