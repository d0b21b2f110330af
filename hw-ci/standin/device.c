/* Devices, contexts, ports, GIDs, events of the device; and the signs that all channels are made of. */
#include "standin.h"

#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

pthread_mutex_t world_lock = PTHREAD_MUTEX_INITIALIZER;

void world_enter(void) { pthread_mutex_lock(&world_lock); }
void world_leave(void) { pthread_mutex_unlock(&world_lock); }

int sign_open(struct sign *sign)
{
	list_init(&sign->queue);
	sign->fd = eventfd(0, EFD_CLOEXEC);
	return sign->fd < 0 ? -1 : 0;
}

void sign_close(struct sign *sign) { close(sign->fd); }

void sign_push(struct sign *sign, struct node *node)
{
	bool was_empty = list_is_empty(&sign->queue);
	list_push(&sign->queue, node);
	if (was_empty && eventfd_write(sign->fd, 1) != 0)
		abort();
}

void sign_drop(struct sign *sign, struct node *node)
{
	list_remove(node);
	eventfd_t count;
	if (list_is_empty(&sign->queue))
		eventfd_read(sign->fd, &count);
}

struct node *sign_take(struct sign *sign, int fd)
{
	while (list_is_empty(&sign->queue)) {
		if (fcntl(fd, F_GETFL) & O_NONBLOCK) {
			errno = EAGAIN;
			return NULL;
		}
		world_leave();
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		poll(&wait, 1, -1);
		world_enter();
	}
	struct node *first = sign->queue.next;
	sign_drop(sign, first);
	return first;
}

static struct s_device devices[DEVICES_MAX];
static struct ibv_context *shared[DEVICES_MAX];

struct s_context *context_of(struct ibv_context *context)
{
	return owner_of(owner_of(context, struct verbs_context, context), struct s_context, verbs);
}

static void devices_fill_once(void)
{
	for (int index = 0; index < config.device_count; index++) {
		struct s_device *device = &devices[index];
		device->address = config.addresses[index];
		device->device.node_type = IBV_NODE_CA;
		device->device.transport_type = IBV_TRANSPORT_IB;
		snprintf(device->device.name, sizeof(device->device.name), "standin%d", index);
	}
}

/* Once: a name that is written again is empty for a moment, and another thread may compare it just then. */
static void devices_fill(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, devices_fill_once);
}

struct s_device *device_by_address(uint32_t address)
{
	devices_fill();
	for (int index = 0; index < config.device_count; index++)
		if (config.has_gids && devices[index].address == address)
			return &devices[index];
	return NULL;
}

struct ibv_device **ibv_get_device_list(int *count)
{
	devices_fill();
	struct ibv_device **list = calloc((size_t)config.device_count + 1, sizeof(*list));
	for (int index = 0; list && index < config.device_count; index++)
		list[index] = &devices[index].device;
	if (count)
		*count = config.device_count;
	return list;
}

void ibv_free_device_list(struct ibv_device **list) { free(list); }

const char *ibv_get_device_name(struct ibv_device *device) { return device->name; }

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *into, size_t bytes)
{
	(void)context;
	if (port != 1)
		return EINVAL;
	struct ibv_port_attr found = {
		.state = config.is_active ? IBV_PORT_ACTIVE : IBV_PORT_DOWN,
		.max_mtu = IBV_MTU_4096,
		.active_mtu = IBV_MTU_4096,
		.gid_tbl_len = 3,
		.link_layer = IBV_LINK_LAYER_ETHERNET,
	};
	memset(into, 0, bytes);
	memcpy(into, &found, bytes < sizeof(found) ? bytes : sizeof(found));
	return 0;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	struct s_context *made = calloc(1, sizeof(*made));
	if (!made)
		return NULL;
	if (sign_open(&made->events) != 0) {
		free(made);
		return NULL;
	}
	made->of = (struct s_device *)(void *)device;
	struct verbs_context *verbs = &made->verbs;
	verbs->sz = sizeof(*verbs);
	verbs->query_port = query_port;
	verbs->context.device = device;
	verbs->context.async_fd = made->events.fd;
	verbs->context.cmd_fd = -1;
	verbs->context.num_comp_vectors = 1;
	verbs->context.abi_compat = (void *)UINTPTR_MAX;
	pthread_mutex_init(&verbs->context.mutex, NULL);
	memory_ops(&verbs->context.ops);
	queue_ops(verbs);
	return &verbs->context;
}

/* librdmacm's own context of a device, which ids point to. */
struct ibv_context *shared_context(struct s_device *device)
{
	ptrdiff_t index = device - devices;
	if (!shared[index])
		shared[index] = ibv_open_device(&device->device);
	return shared[index];
}

int ibv_close_device(struct ibv_context *context)
{
	struct s_context *own = context_of(context);
	world_enter();
	while (!list_is_empty(&own->events.queue)) {
		struct s_event *event = owner_of(own->events.queue.next, struct s_event, node);
		list_remove(&event->node);
		free(event);
	}
	world_leave();
	sign_close(&own->events);
	free(own);
	return 0;
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *into)
{
	(void)context;
	memset(into, 0, sizeof(*into));
	snprintf(into->fw_ver, sizeof(into->fw_ver), "standin-1");
	into->vendor_id = config.vendor;
	into->max_qp = QUEUE_PAIRS_MAX;
	into->max_qp_wr = 4096;
	into->max_sge = PARTS_MAX;
	into->max_cq = 1024;
	into->max_cqe = 32767;
	into->max_mr = KEYS_MAX / 2;
	into->max_pd = 1024;
	into->max_qp_rd_atom = 16;
	into->max_qp_init_rd_atom = 16;
	into->max_mw = config.has_windows ? KEYS_MAX / 2 : 0;
	into->device_cap_flags = config.has_windows ? IBV_DEVICE_MEM_WINDOW | IBV_DEVICE_MEM_WINDOW_TYPE_2B : 0;
	into->max_srq = config.has_srq ? 1024 : 0;
	into->max_srq_wr = 4096;
	into->max_srq_sge = 1;
	into->phys_port_cnt = 1;
	return 0;
}

ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t most, uint32_t flags, size_t bytes)
{
	if (flags != 0 || bytes < sizeof(struct ibv_gid_entry))
		return -EINVAL;
	uint32_t interface = if_nametoindex("lo");
	/* Index 0 is link-local, as on every RoCE device: it leads nowhere. */
	struct ibv_gid_entry table[3] = {
		{ .gid_index = 0, .port_num = 1, .gid_type = IBV_GID_TYPE_ROCE_V2, .ndev_ifindex = interface },
		{ .gid_index = 1, .port_num = 1, .gid_type = IBV_GID_TYPE_ROCE_V1, .ndev_ifindex = interface },
		{ .gid_index = 2, .port_num = 1, .gid_type = IBV_GID_TYPE_ROCE_V2, .ndev_ifindex = interface },
	};
	table[0].gid.raw[0] = 0xfe;
	table[0].gid.raw[1] = 0x80;
	table[0].gid.raw[15] = 1;
	for (int index = 1; index < 3; index++) {
		table[index].gid.raw[10] = table[index].gid.raw[11] = 0xff;
		memcpy(&table[index].gid.raw[12], &context_of(context)->of->address, 4);
	}
	size_t count = config.has_gids ? 3 : 1;
	count = count < most ? count : most;
	memcpy(entries, table, count * sizeof(*table));
	return (ssize_t)count;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid)
{
	struct ibv_gid_entry table[3];
	ssize_t count = _ibv_query_gid_table(context, table, 3, 0, sizeof(*table));
	if (port != 1 || index < 0 || index >= count)
		return -1;
	*gid = table[index].gid;
	return 0;
}

/* ---- events of the device */

void device_tell(struct ibv_context *context, enum ibv_event_type kind, struct ibv_qp *qp)
{
	struct s_event *event = calloc(1, sizeof(*event));
	if (!event)
		return;
	event->event.event_type = kind;
	event->event.element.qp = qp;
	sign_push(&context_of(context)->events, &event->node);
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *into)
{
	struct s_context *own = context_of(context);
	world_enter();
	struct node *first = sign_take(&own->events, own->events.fd);
	world_leave();
	if (!first)
		return -1;
	struct s_event *event = owner_of(first, struct s_event, node);
	*into = event->event;
	free(event);
	return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event) { (void)event; }
