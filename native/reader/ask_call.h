/*
 * A call of Python's that asks for something on one connection: its hold on that, and on the
 * interpreter while it waits. For ask_calls.c and qp_calls.c; next hop: ask.h, rdma.h.
 */
#ifndef FFS_READER_ASK_CALL_H
#define FFS_READER_ASK_CALL_H

#include "reader/ask.h"
#include "reader/module.h"

struct ffs_ask_call {
	struct ffs_ask ask;
	PyThreadState *thread;
};

/* Own the connection for so long, with handlers of signals run meanwhile. 0, 1 if it is dead, or -1
 * with an exception set; paired with ffs_conn_release for 0 alone. */
int ffs_ask_call_claim(struct ffs_ask_call *call, PyObject *module, PyObject *connection,
                       long long deadline_ms);

/* Around what waits: without the interpreter's lock. The end returns -1 if a handler has raised. */
void ffs_ask_call_begin(struct ffs_ask_call *call);
int ffs_ask_call_end(struct ffs_ask_call *call);

#endif
