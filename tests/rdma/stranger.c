/*
 * Who comes by rdma_cm as it likes, to test the daemon's and the client's end of it.
 *
 *   stranger come ADDRESS PORT SECRET   asks to be taken, with private data (hex, or - for none);
 *                                       prints "taken", then "left" when it is left, or else what
 *                                       the manager says
 *   stranger deaf ADDRESS               listens, prints its port, and answers nobody; until its input ends
 *
 * Speaks by librdmacm alone.
 */
#include <arpa/inet.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_MS 5000

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in name_of(const char *address, int port)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (inet_pton(AF_INET, address, &name.sin_addr) != 1)
		die("address");
	return name;
}

static enum rdma_cm_event_type next(struct rdma_event_channel *channel)
{
	struct rdma_cm_event *event;
	if (rdma_get_cm_event(channel, &event) != 0)
		die("event");
	enum rdma_cm_event_type type = event->event;
	rdma_ack_cm_event(event);
	return type;
}

static uint8_t secret_of(const char *hex, uint8_t *bytes)
{
	uint8_t count = 0;
	unsigned int byte;
	while (sscanf(hex + 2 * count, "%2x", &byte) == 1)
		bytes[count++] = (uint8_t)byte;
	return count;
}

static struct ibv_qp *open_pair(struct rdma_cm_id *id)
{
	struct ibv_qp_init_attr wanted = {
		.cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1},
		.qp_type = IBV_QPT_RC};
	if (rdma_create_qp(id, NULL, &wanted) != 0)
		die("queue pair");
	return id->qp;
}

static int come(char **arguments)
{
	struct sockaddr_in to = name_of(arguments[0], atoi(arguments[1]));
	struct sockaddr_in from = name_of("10.77.0.2", 0);
	struct rdma_event_channel *channel = rdma_create_event_channel();
	struct rdma_cm_id *id;
	uint8_t secret[56];
	struct rdma_conn_param asked = {.private_data = secret,
	                                .private_data_len = secret_of(arguments[2], secret),
	                                .responder_resources = 1,
	                                .initiator_depth = 1,
	                                .retry_count = 7};
	if (channel == NULL || rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) != 0)
		die("open");
	if (rdma_resolve_addr(id, (struct sockaddr *)&from, (struct sockaddr *)&to, WAIT_MS) != 0 ||
	    next(channel) != RDMA_CM_EVENT_ADDR_RESOLVED || rdma_resolve_route(id, WAIT_MS) != 0 ||
	    next(channel) != RDMA_CM_EVENT_ROUTE_RESOLVED)
		die("resolve");
	open_pair(id);
	if (rdma_connect(id, &asked) != 0)
		die("connect");
	enum rdma_cm_event_type type = next(channel);
	printf("%s\n", type == RDMA_CM_EVENT_ESTABLISHED ? "taken" : rdma_event_str(type));
	fflush(stdout);
	if (type == RDMA_CM_EVENT_ESTABLISHED)
		printf("%s\n", next(channel) == RDMA_CM_EVENT_DISCONNECTED ? "left" : "other");
	return 0;
}

static int deaf(char **arguments)
{
	struct sockaddr_in name = name_of(arguments[0], 0);
	struct rdma_event_channel *channel = rdma_create_event_channel();
	struct rdma_cm_id *id;
	char byte;
	if (channel == NULL || rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) != 0 ||
	    rdma_bind_addr(id, (struct sockaddr *)&name) != 0 || rdma_listen(id, 4) != 0)
		die("listen");
	printf("%d\n", ntohs(rdma_get_src_port(id)));
	fflush(stdout);
	return (int)read(0, &byte, 1);
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "come") == 0)
		return come(argv + 2);
	if (argc == 3 && strcmp(argv[1], "deaf") == 0)
		return deaf(argv + 2);
	return 2;
}
