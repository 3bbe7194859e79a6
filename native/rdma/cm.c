/* See cm.h. */
#ifdef FFS_HAVE_CM
#include "rdma/cm.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <string.h>

#include "core/sys.h"

#define BACKLOG 128
#define ASK_AGAIN 7 /* as often as there is room for in a request */

#define FFS_CM_CALLS(X)                                                                            \
	X(rdma_create_event_channel)                                                                   \
	X(rdma_destroy_event_channel)                                                                  \
	X(rdma_get_cm_event)                                                                           \
	X(rdma_ack_cm_event)                                                                           \
	X(rdma_event_str)                                                                              \
	X(rdma_create_id)                                                                              \
	X(rdma_destroy_id)                                                                             \
	X(rdma_bind_addr)                                                                              \
	X(rdma_get_src_port)                                                                           \
	X(rdma_listen)                                                                                 \
	X(rdma_resolve_addr)                                                                           \
	X(rdma_resolve_route)                                                                          \
	X(rdma_connect)                                                                                \
	X(rdma_establish)                                                                              \
	X(rdma_accept)                                                                                 \
	X(rdma_init_qp_attr)

#define FFS_CM_POINTER(name) __typeof__(name) *(name);
static struct {
	FFS_CM_CALLS(FFS_CM_POINTER)
} library;
#undef FFS_CM_POINTER

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

static void hold(void)
{
	pthread_mutex_lock(&lock);
}

static void let_go(void)
{
	pthread_mutex_unlock(&lock);
}

/* With the lock held. */
static bool load(char *text)
{
	static const char *const names[] = {
#define FFS_CM_NAME(name) #name,
		FFS_CM_CALLS(FFS_CM_NAME)
#undef FFS_CM_NAME
	};
	_Static_assert(sizeof(names) == sizeof(library), "a pointer for each name");
	if (!loaded && ffs_rdma_load("librdmacm.so.1", "librdmacm1", names,
	                             sizeof(names) / sizeof(names[0]), &library, text)) {
		loaded = pthread_atfork(hold, let_go, let_go) == 0;
		if (!loaded)
			ffs_rdma_say(text, "no fork handler could be installed");
	}
	return loaded;
}

/* The result of a call of the library. */
static int outcome(int result)
{
	return result == 0 ? 0 : -(errno > 0 ? errno : EIO);
}

/* --------------------------------------------------------------------------------------- manager
 */

enum ffs_rdma_fault ffs_cm_open(struct ffs_cm *cm, char *text)
{
	*cm = (struct ffs_cm){.fd = -1};
	hold();
	bool there = load(text);
	if (there)
		cm->channel = library.rdma_create_event_channel();
	int error = errno;
	let_go();
	if (!there)
		return FFS_RDMA_NO_CM;
	if (cm->channel == NULL) {
		ffs_rdma_say(text, "rdma_cm cannot be used: %s (is the module rdma_ucm loaded?)",
		             strerror(error));
		return FFS_RDMA_NO_CM;
	}
	cm->fd = cm->channel->fd;
	if (ffs_sys_set_blocking(cm->fd, false) == 0)
		return FFS_RDMA_FINE;
	error = errno;
	ffs_cm_close(cm);
	return ffs_rdma_explain(error, 0, text);
}

void ffs_cm_close(struct ffs_cm *cm)
{
	hold();
	if (cm->channel != NULL)
		library.rdma_destroy_event_channel(cm->channel);
	let_go();
	*cm = (struct ffs_cm){.fd = -1};
}

void ffs_cm_forget(struct ffs_cm *cm)
{
	if (cm->channel != NULL)
		(void)ffs_sys_close(cm->fd);
	*cm = (struct ffs_cm){.fd = -1};
}

static enum ffs_cm_news news_of(enum rdma_cm_event_type type)
{
	switch (type) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		return FFS_CM_AT_ADDRESS;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		return FFS_CM_ON_ROUTE;
	case RDMA_CM_EVENT_CONNECT_REQUEST:
		return FFS_CM_ASKED;
	case RDMA_CM_EVENT_CONNECT_RESPONSE:
	case RDMA_CM_EVENT_ESTABLISHED: /* iWARP knows no response */
		return FFS_CM_ANSWERED;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return FFS_CM_OVER;
	default:
		return FFS_CM_OTHER;
	}
}

static void describe(struct ffs_cm_event *event, const struct rdma_cm_event *found)
{
	const struct rdma_conn_param *asked = &found->param.conn;
	*event = (struct ffs_cm_event){.news = news_of(found->event),
	                               .end = found->id,
	                               .name = library.rdma_event_str(found->event),
	                               .status = found->status};
	if (event->news != FFS_CM_ASKED)
		return;
	event->reads = asked->responder_resources;
	event->has_secret =
		asked->private_data != NULL && asked->private_data_len >= FFS_CM_SECRET_BYTES;
	if (event->has_secret)
		memcpy(event->secret, asked->private_data, FFS_CM_SECRET_BYTES);
}

enum ffs_cm_news ffs_cm_next(struct ffs_cm *cm, struct ffs_cm_event *event)
{
	struct rdma_cm_event *found;
	*event = (struct ffs_cm_event){.news = FFS_CM_NONE};
	hold();
	if (library.rdma_get_cm_event(cm->channel, &found) == 0) {
		describe(event, found);
		(void)library.rdma_ack_cm_event(found); /* before its end may be ended */
	}
	let_go();
	return event->news;
}

/* ------------------------------------------------------------------------------------------ ends
 */

static struct sockaddr_storage name_of(const uint8_t address[16], uint16_t port)
{
	static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	struct sockaddr_storage name = {0};
	if (memcmp(address, mapped, sizeof(mapped)) == 0) {
		struct sockaddr_in *inet = (struct sockaddr_in *)&name;
		inet->sin_family = AF_INET;
		inet->sin_port = htons(port);
		memcpy(&inet->sin_addr, address + sizeof(mapped), sizeof(inet->sin_addr));
		return name;
	}
	struct sockaddr_in6 *inet6 = (struct sockaddr_in6 *)&name;
	inet6->sin6_family = AF_INET6;
	inet6->sin6_port = htons(port);
	memcpy(&inet6->sin6_addr, address, sizeof(inet6->sin6_addr));
	return name;
}

int ffs_cm_bind(struct ffs_cm *cm, const uint8_t address[16], struct rdma_cm_id **end)
{
	struct sockaddr_storage name = name_of(address, 0);
	*end = NULL;
	hold();
	errno = 0;
	int error = outcome(library.rdma_create_id(cm->channel, end, NULL, RDMA_PS_TCP));
	if (error == 0) {
		error = outcome(library.rdma_bind_addr(*end, (struct sockaddr *)&name));
		if (error == 0 && (*end)->verbs == NULL)
			error = -ENODEV; /* of no device */
	}
	let_go();
	if (error != 0 && *end != NULL) {
		ffs_cm_end(*end);
		*end = NULL;
	}
	return error;
}

int ffs_cm_listen(struct rdma_cm_id *end)
{
	hold();
	int error = outcome(library.rdma_listen(end, BACKLOG));
	let_go();
	return error;
}

int ffs_cm_dial(struct rdma_cm_id *end, const uint8_t address[16], uint16_t port, int wait_ms)
{
	struct sockaddr_storage name = name_of(address, port);
	hold();
	int error = outcome(library.rdma_resolve_addr(end, NULL, (struct sockaddr *)&name, wait_ms));
	let_go();
	return error;
}

int ffs_cm_find_route(struct rdma_cm_id *end, int wait_ms)
{
	hold();
	int error = outcome(library.rdma_resolve_route(end, wait_ms));
	let_go();
	return error;
}

static struct rdma_conn_param parameters(const struct ffs_qp *qp)
{
	uint8_t reads = qp->path->device->reads;
	return (struct rdma_conn_param){.responder_resources = reads,
	                                .initiator_depth = reads,
	                                .flow_control = 1,
	                                .retry_count = ASK_AGAIN,
	                                .rnr_retry_count = ASK_AGAIN,
	                                .srq = qp->qp->srq != NULL,
	                                .qp_num = qp->qp->qp_num};
}

int ffs_cm_ask(struct rdma_cm_id *end, const struct ffs_qp *qp,
               const uint8_t secret[FFS_CM_SECRET_BYTES])
{
	struct rdma_conn_param asked = parameters(qp);
	asked.private_data = secret;
	asked.private_data_len = FFS_CM_SECRET_BYTES;
	hold();
	int error = outcome(library.rdma_connect(end, &asked));
	let_go();
	return error;
}

/* To the state, by what the manager knows of the way; nothing to be done where the kernel does it
 * (iWARP). With the lock held. */
static int move(struct rdma_cm_id *end, struct ffs_qp *qp, enum ibv_qp_state state)
{
	struct ibv_qp_attr attributes = {.qp_state = state};
	int mask = 0;
	uint8_t reads = qp->path->device->reads;
	int error = outcome(library.rdma_init_qp_attr(end, &attributes, &mask));
	if (attributes.max_rd_atomic > reads)
		attributes.max_rd_atomic = reads;
	if (attributes.max_dest_rd_atomic > reads)
		attributes.max_dest_rd_atomic = reads;
	return error != 0 || mask == 0 ? error : ffs_qp_move(qp, &attributes, mask);
}

static int connect_pair(struct rdma_cm_id *end, struct ffs_qp *qp)
{
	int error = move(end, qp, IBV_QPS_INIT);
	if (error == 0)
		error = move(end, qp, IBV_QPS_RTR);
	return error != 0 ? error : move(end, qp, IBV_QPS_RTS);
}

int ffs_cm_finish(struct rdma_cm_id *end, struct ffs_qp *qp)
{
	hold();
	int error = connect_pair(end, qp);
	if (error == 0 && qp->path->link != FFS_LINK_IWARP)
		error = outcome(library.rdma_establish(end));
	let_go();
	return error;
}

int ffs_cm_accept(struct rdma_cm_id *end, struct ffs_qp *qp, uint8_t reads)
{
	struct rdma_conn_param taken = parameters(qp);
	taken.initiator_depth = reads < taken.initiator_depth ? reads : taken.initiator_depth;
	hold();
	int error = connect_pair(end, qp);
	if (error == 0)
		error = outcome(library.rdma_accept(end, &taken));
	let_go();
	return error;
}

uint16_t ffs_cm_port(struct rdma_cm_id *end)
{
	hold();
	uint16_t port = ntohs(library.rdma_get_src_port(end));
	let_go();
	return port;
}

const struct ffs_rdma_path *ffs_cm_path(const struct rdma_cm_id *end,
                                        const struct ffs_rdma_wish *wish)
{
	return ffs_rdma_at(end->verbs->device->name, end->port_num, wish);
}

void ffs_cm_end(struct rdma_cm_id *end)
{
	hold();
	(void)library.rdma_destroy_id(end);
	let_go();
}
#endif
