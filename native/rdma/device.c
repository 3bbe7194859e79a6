/* See device.h. */
#include "rdma/device.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/sys.h"
#include "rdma/calls.h"
#include "rdma/region.h"

#define READS_MAX 16
#define GIDS_MAX 256u /* an address has one byte for it */
#define RESCAN_NS INT64_C(1000000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ffs_rdma_device *devices;
static struct ffs_rdma_path *paths;
static _Atomic uint32_t generation = 1;
static pthread_once_t guarded = PTHREAD_ONCE_INIT;
static int guard_error;
static int64_t scanned_ns; /* 0: never */

uint32_t ffs_rdma_generation(void)
{
	return atomic_load_explicit(&generation, memory_order_relaxed);
}

/* In a child, alone: what the parent opened is its own. Closing the descriptors is all that can be
 * done without telling the kernel to take the parent's queue pairs apart. */
static void start_again_in_child(void)
{
	atomic_fetch_add_explicit(&generation, 1, memory_order_relaxed);
	for (struct ffs_rdma_device *device = devices; device != NULL; device = device->next) {
		(void)close(device->context->async_fd);
		(void)close(device->context->cmd_fd);
	}
	devices = NULL;
	paths = NULL;
	scanned_ns = 0;
	ffs_regions_forget();
	lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* ----------------------------------------------------------------------------------------- scan */

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attributes)
{
	struct verbs_context *verbs = verbs_get_ctx_op(context, query_port);
	return verbs == NULL ? ENOSYS
	                     : verbs->query_port(context, port, attributes, sizeof(*attributes));
}

static uint8_t link_of(const struct ffs_rdma_device *device, uint32_t gid_type)
{
	if (device->context->device->transport_type == IBV_TRANSPORT_IWARP)
		return FFS_LINK_IWARP; /* its GIDs have the type of InfiniBand's */
	switch (gid_type) {
	case IBV_GID_TYPE_IB:
		return FFS_LINK_INFINIBAND;
	case IBV_GID_TYPE_ROCE_V2:
		return FFS_LINK_ROCE2;
	default:
		return FFS_LINK_ROCE1;
	}
}

static bool is_known(const struct ffs_rdma_device *device, uint8_t port,
                     const struct ibv_gid_entry *entry)
{
	const struct ffs_rdma_path *path = paths;
	while (path != NULL &&
	       !(path->device == device && path->port == port && path->gid_index == entry->gid_index &&
	         memcmp(path->gid.raw, entry->gid.raw, sizeof(path->gid.raw)) == 0))
		path = path->next;
	return path != NULL;
}

/* One path for each new GID of an active port. Without memory some are not found. */
static void scan_port(struct ffs_rdma_device *device, uint8_t port)
{
	struct ibv_port_attr attributes = {0};
	struct ibv_gid_entry entry;
	if (query_port(device->context, port, &attributes) != 0 || attributes.state != IBV_PORT_ACTIVE)
		return;
	for (uint32_t i = 0; i < (uint32_t)attributes.gid_tbl_len && i < GIDS_MAX; i++) {
		if (ffs_verbs()->_ibv_query_gid_ex(device->context, port, i, &entry, 0, sizeof(entry)) !=
		        0 ||
		    is_known(device, port, &entry))
			continue;
		struct ffs_rdma_path *path = ffs_sys_calloc(1, sizeof(*path));
		if (path == NULL)
			return;
		*path = (struct ffs_rdma_path){.next = paths,
		                               .device = device,
		                               .gid = entry.gid,
		                               .gid_index = i,
		                               .lid = attributes.lid,
		                               .port = port,
		                               .link = link_of(device, entry.gid_type),
		                               .mtu = (uint8_t)attributes.active_mtu};
		paths = path;
	}
}

static uint8_t reads_of(const struct ibv_device_attr *attributes)
{
	int reads = attributes->max_qp_rd_atom < attributes->max_qp_init_rd_atom
	                ? attributes->max_qp_rd_atom
	                : attributes->max_qp_init_rd_atom;
	return (uint8_t)(reads < 1 ? 1 : reads < READS_MAX ? reads : READS_MAX);
}

static void describe(struct ffs_rdma_device *device, const struct ibv_device_attr *attributes)
{
	const unsigned int windows = IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B;
	device->windows = (attributes->device_cap_flags & windows) != 0;
	device->ports = attributes->phys_port_cnt;
	device->sges_max = attributes->max_sge;
	device->wrs_max = attributes->max_qp_wr;
	device->reads = reads_of(attributes);
}

/* NULL if it cannot be used. */
static struct ffs_rdma_device *open_device(struct ibv_device *found,
                                           struct ibv_device_attr *attributes)
{
	const struct ffs_verbs *verbs = ffs_verbs();
	struct ffs_rdma_device *device = ffs_sys_calloc(1, sizeof(*device));
	if (device == NULL)
		return NULL;
	device->context = verbs->ibv_open_device(found);
	if (device->context != NULL && verbs->ibv_query_device(device->context, attributes) == 0)
		device->pd = ffs_alloc_pd(device->context);
	if (device->pd != NULL) {
		describe(device, attributes);
		strncpy(device->name, verbs->ibv_get_device_name(found), sizeof(device->name) - 1);
		return device;
	}
	if (device->context != NULL)
		(void)verbs->ibv_close_device(device->context);
	free(device);
	return NULL;
}

static void scan_ports(struct ffs_rdma_device *device)
{
	for (uint32_t port = 1; port <= device->ports; port++)
		scan_port(device, (uint8_t)port);
}

/* One that has gone may have come back, by the same name. */
static bool is_open(struct ibv_device *found)
{
	const char *name = ffs_verbs()->ibv_get_device_name(found);
	const struct ffs_rdma_device *device = devices;
	while (device != NULL && (device->gone || strcmp(device->name, name) != 0))
		device = device->next;
	return device != NULL;
}

static void open_devices(void)
{
	struct ibv_device_attr attributes = {0};
	int count = 0;
	struct ibv_device **found = ffs_verbs()->ibv_get_device_list(&count);
	for (int i = 0; found != NULL && i < count; i++) {
		struct ffs_rdma_device *device =
			is_open(found[i]) ? NULL : open_device(found[i], &attributes);
		if (device == NULL)
			continue;
		device->next = devices;
		devices = device;
	}
	if (found != NULL)
		ffs_verbs()->ibv_free_device_list(found);
}

static int64_t monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Whether a device has been taken out, or has failed for good: it tells of that once, and of
 * nothing after that. What else it tells is seen where it matters. */
static void look_at(struct ffs_rdma_device *device)
{
	struct pollfd polled = {.fd = device->context->async_fd, .events = POLLIN};
	struct ibv_async_event event;
	while (!device->gone && ffs_sys_poll(&polled, 1, 0) > 0) {
		bool told = (polled.revents & POLLIN) != 0 &&
		            ffs_verbs()->ibv_get_async_event(device->context, &event) == 0;
		device->gone = !told || event.event_type == IBV_EVENT_DEVICE_FATAL;
		if (told)
			ffs_verbs()->ibv_ack_async_event(&event);
	}
}

static void look_at_devices(void)
{
	for (struct ffs_rdma_device *device = devices; device != NULL; device = device->next)
		look_at(device);
}

/* A device may have come, a port come up, or got an address, meanwhile. Whoever asks for what is
 * not there may do so as often as it likes: the answer is a second old at most. */
static void scan(void)
{
	int64_t now_ns = monotonic_ns();
	if (scanned_ns != 0 && now_ns - scanned_ns < RESCAN_NS)
		return;
	scanned_ns = now_ns;
	open_devices();
	for (struct ffs_rdma_device *device = devices; device != NULL; device = device->next)
		if (!device->gone)
			scan_ports(device);
}

/* --------------------------------------------------------------------------------------- choice */

bool ffs_rdma_socket_address(int fd, bool other_end, uint8_t address[16])
{
	struct sockaddr_storage storage = {0};
	socklen_t length = sizeof(storage);
	struct sockaddr *name = (struct sockaddr *)&storage;
	if (fd < 0 ||
	    (other_end ? getpeername(fd, name, &length) : getsockname(fd, name, &length)) != 0)
		return false;
	memset(address, 0, 16);
	if (storage.ss_family == AF_INET) {
		const struct sockaddr_in *inet = (const struct sockaddr_in *)&storage;
		address[10] = address[11] = 0xff;
		memcpy(address + 12, &inet->sin_addr, 4);
		return true;
	}
	if (storage.ss_family != AF_INET6)
		return false;
	memcpy(address, &((const struct sockaddr_in6 *)&storage)->sin6_addr, 16);
	return true;
}

static bool is_ipv4(const uint8_t raw[16])
{
	static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	return memcmp(raw, mapped, sizeof(mapped)) == 0;
}

static bool is_link_local(const uint8_t raw[16])
{
	return raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80;
}

static bool is_wanted(const struct ffs_rdma_path *path, const struct ffs_rdma_wish *wish)
{
	if (path->device->gone ||
	    (wish->device[0] != '\0' && strcmp(wish->device, path->device->name) != 0) ||
	    (path->link == FFS_LINK_IWARP && !wish->by_cm))
		return false;
	if (wish->gid_index >= 0)
		return path->gid_index == (uint32_t)wish->gid_index;
	return path->link != FFS_LINK_ROCE1;
}

static bool reaches(const struct ffs_rdma_path *path, const struct ffs_qp_end *peer, bool by_cm)
{
	uint8_t gid[16];
	if (path->link != peer->link)
		return false;
	if (by_cm && path->link != FFS_LINK_ROCE2)
		return true;
	ffs_store_u64(gid, peer->gid_first);
	ffs_store_u64(gid + 8, peer->gid_last);
	if (path->link == FFS_LINK_INFINIBAND)
		return memcmp(gid, path->gid.raw, 8) == 0; /* the subnet's prefix */
	return is_ipv4(gid) == is_ipv4(path->gid.raw) &&
	       is_link_local(gid) == is_link_local(path->gid.raw);
}

static int score(const struct ffs_rdma_path *path, const union ibv_gid *own)
{
	int same = own != NULL && memcmp(own->raw, path->gid.raw, 16) == 0 ? 4 : 0;
	int routed = path->link == FFS_LINK_INFINIBAND || !is_link_local(path->gid.raw) ? 2 : 0;
	return 1 + same + routed + (is_ipv4(path->gid.raw) ? 1 : 0);
}

static const struct ffs_rdma_path *best(int tcp_fd, const struct ffs_rdma_wish *wish,
                                        const struct ffs_qp_end *peer)
{
	union ibv_gid own;
	bool has_own = ffs_rdma_socket_address(tcp_fd, false, own.raw);
	const struct ffs_rdma_path *found = NULL;
	int most = 0;
	for (const struct ffs_rdma_path *path = paths; path != NULL; path = path->next) {
		if (!is_wanted(path, wish) || (peer != NULL && !reaches(path, peer, wish->by_cm)))
			continue;
		int points = score(path, has_own ? &own : NULL);
		if (points > most) {
			most = points;
			found = path;
		}
	}
	return found;
}

static bool any_gone(void)
{
	const struct ffs_rdma_device *device = devices;
	while (device != NULL && !device->gone)
		device = device->next;
	return device != NULL;
}

static enum ffs_rdma_fault explain_none(const struct ffs_rdma_wish *wish,
                                        const struct ffs_qp_end *peer, char *text)
{
	bool there = wish->device[0] == '\0' && devices != NULL;
	for (const struct ffs_rdma_device *device = devices; device != NULL; device = device->next)
		there = there || strcmp(wish->device, device->name) == 0;
	if (!there) {
		ffs_rdma_say(text, "there is no RDMA device%s%s", wish->device[0] != '\0' ? " " : "",
		             wish->device);
		return FFS_RDMA_NO_DEVICE;
	}
	if (peer != NULL && best(-1, wish, NULL) != NULL) {
		ffs_rdma_say(text, "no port has the other end's kind of link, or is in its subnet");
		return FFS_RDMA_OTHER_SUBNET;
	}
	struct ffs_rdma_wish by_cm = *wish;
	by_cm.by_cm = true;
	if (!wish->by_cm && best(-1, &by_cm, NULL) != NULL) {
		ffs_rdma_say(text, "the RDMA device is iWARP: it is connected to by rdma_cm alone");
		return FFS_RDMA_OTHER_WAY;
	}
	ffs_rdma_say(text, "no RDMA port is active, or none has the address that is asked for%s",
	             any_gone() ? "; a device has been taken out" : "");
	return FFS_RDMA_NO_PORT;
}

static void guard(void)
{
	guard_error = pthread_atfork(NULL, NULL, start_again_in_child);
}

/* Otherwise a page that the card writes to could become the child's at a fork. Asked of a kernel
 * that has a device: one without any cannot tell. */
static enum ffs_rdma_fault check_copies(char *text)
{
	if (ffs_verbs()->ibv_is_fork_initialized() == IBV_FORK_UNNEEDED)
		return FFS_RDMA_FINE;
	ffs_rdma_say(text, "this kernel does not copy registered memory at a fork (Linux 5.12 does)");
	return FFS_RDMA_NO_COPY_ON_FORK;
}

enum ffs_rdma_fault ffs_rdma_choose(int tcp_fd, const struct ffs_rdma_wish *wish,
                                    const struct ffs_qp_end *peer,
                                    const struct ffs_rdma_path **path, char *text)
{
	if (ffs_verbs_load(text) == NULL)
		return FFS_RDMA_NO_LIBRARY;
	(void)pthread_once(&guarded, guard); /* before anything is opened */
	if (guard_error != 0) {
		ffs_rdma_say(text, "no fork handler could be installed");
		return FFS_RDMA_SYSTEM;
	}
	pthread_mutex_lock(&lock);
	look_at_devices();
	*path = best(tcp_fd, wish, peer);
	if (*path == NULL) {
		scan();
		*path = best(tcp_fd, wish, peer);
	}
	enum ffs_rdma_fault fault = *path == NULL ? explain_none(wish, peer, text) : check_copies(text);
	pthread_mutex_unlock(&lock);
	return fault;
}

const struct ffs_rdma_path *ffs_rdma_at(const char *device, uint8_t port,
                                        const struct ffs_rdma_wish *wish)
{
	pthread_mutex_lock(&lock);
	const struct ffs_rdma_path *path = paths;
	while (path != NULL && !(path->port == port && strcmp(path->device->name, device) == 0 &&
	                         is_wanted(path, wish)))
		path = path->next;
	pthread_mutex_unlock(&lock);
	return path;
}

enum ffs_rdma_fault ffs_rdma_explain(int error, size_t bytes, char *text)
{
	struct rlimit limit = {0};
	(void)getrlimit(RLIMIT_MEMLOCK, &limit);
	if (error == ENOMEM || error == EPERM || error == EAGAIN) {
		ffs_rdma_say(text,
		             "%zu bytes could not be registered: RLIMIT_MEMLOCK is %llu bytes; raise it "
		             "(ulimit -l, LimitMEMLOCK=)",
		             bytes, (unsigned long long)limit.rlim_cur);
		return FFS_RDMA_MEMLOCK;
	}
	ffs_rdma_say(text, "the RDMA device refused: %s", strerror(error));
	return FFS_RDMA_SYSTEM;
}
