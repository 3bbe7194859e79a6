/*
 * ffs._reader.Connection: a Python object around one struct ffs_conn (connection.h).
 */
#include "reader/module.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>

#include "core/sys.h"

static struct ffs_conn *conn_of(PyObject *self)
{
	return &((struct ffs_connection_object *)self)->conn;
}

/* For callers whose socket closes its own descriptor: what breaks them off between giving that up
 * and our taking it would lose it. */
static int init_with_copy(struct ffs_conn *conn, int fd, bool local, bool mapped)
{
	int copy = ffs_sys_dup(fd);
	if (copy < 0) {
		atomic_store_explicit(&conn->fd, -1, memory_order_relaxed);
		return -errno;
	}
	int error = ffs_conn_init(conn, copy, local, mapped);
	if (error != 0)
		(void)ffs_sys_close(copy);
	return error;
}

static PyObject *connection_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", "local", "mapped", "copy", "priority", NULL};
	int fd, local = 0, mapped = 0, copy = 0;
	unsigned char priority = FFS_TRAINING;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$pppb:Connection", names, &fd, &local,
	                                 &mapped, &copy, &priority))
		return NULL;
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	PyObject *self = alloc(type, 0);
	if (self == NULL)
		return NULL;
	int (*init)(struct ffs_conn *, int, bool, bool) = copy ? init_with_copy : ffs_conn_init;
	int error = init(conn_of(self), fd, local != 0, mapped != 0);
	if (error != 0) {
		errno = -error;
		PyErr_SetFromErrno(PyExc_OSError);
		Py_DECREF(self);
		return NULL;
	}
	conn_of(self)->priority = priority;
	return self;
}

/* Nobody else can hold it now: a call keeps references to its connections. */
static void connection_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_ClearWeakRefs(self);
	ffs_conn_fini(conn_of(self));
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *connection_repr(PyObject *self)
{
	const struct ffs_conn *conn = conn_of(self);
	return PyUnicode_FromFormat("<ffs._reader.Connection fd=%d %s>", ffs_conn_fd(conn),
	                            ffs_conn_alive(conn) ? "alive" : "dead");
}

static PyObject *connection_alive(PyObject *self, void *closure)
{
	(void)closure;
	return PyBool_FromLong(ffs_conn_alive(conn_of(self)));
}

static PyObject *connection_bytes_in_flight(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromUnsignedLongLong(
		atomic_load_explicit(&conn_of(self)->bytes_in_flight, memory_order_relaxed));
}

static PyObject *connection_served_ns(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromLongLong(conn_of(self)->served_ns);
}

static PyObject *connection_local(PyObject *self, void *closure)
{
	(void)closure;
	return PyBool_FromLong(conn_of(self)->local != NULL);
}

/* The device, None where it goes by the socket. Read by whoever has the connection. */
static PyObject *connection_rdma(PyObject *self, void *closure)
{
	(void)closure;
	const struct ffs_conn *conn = conn_of(self);
	if (conn->rdma == NULL)
		Py_RETURN_NONE;
	return PyUnicode_FromString(ffs_rdma_device_name(conn->rdma));
}

/* Read by whoever has the connection. */
static PyObject *connection_own_domain(PyObject *self, void *closure)
{
	(void)closure;
	const struct ffs_conn *conn = conn_of(self);
	return PyBool_FromLong(conn->rdma != NULL && ffs_rdma_own_domain(conn->rdma));
}

static PyObject *connection_rdma_fault(PyObject *self, void *closure)
{
	(void)closure;
	const struct ffs_conn *conn = conn_of(self);
	return Py_BuildValue("(is)", (int)conn->rdma_fault, conn->rdma_reason);
}

static PyObject *connection_fileno(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyLong_FromLong(ffs_conn_fd(conn_of(self)));
}

static PyObject *connection_close(PyObject *self, PyObject *unused)
{
	(void)unused;
	ffs_conn_close(conn_of(self));
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"fileno", connection_fileno, METH_NOARGS, "The descriptor; -1 once closed."},
	{"close", connection_close, METH_NOARGS,
     "Close now, or within 100 ms if a call is using it: that call's operations then fail."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
	{"alive", connection_alive, NULL, "False once closed, and in a forked child.", NULL},
	{"bytes_in_flight", connection_bytes_in_flight, NULL, "Asked for and not answered yet.", NULL},
	{"served_ns", connection_served_ns, NULL, "How long it was busy in the last call.", NULL},
	{"local", connection_local, NULL, "Whether files are read instead of the socket.", NULL},
	{"rdma", connection_rdma, NULL, "The device that it goes by, or None.", NULL},
	{"own_domain", connection_own_domain, NULL, "Whether it may write by RDMA.", NULL},
	{"rdma_fault", connection_rdma_fault, NULL, "Why RDMA ended it, if that was why.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

/* Whoever has opened connections knows them weakly: to close them in a forked child. */
static PyMemberDef members[] = {
	{"__weaklistoffset__", T_PYSSIZET, offsetof(struct ffs_connection_object, weak_references),
     READONLY, NULL},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
	{Py_tp_doc, "One authenticated data connection; owns its descriptor. See ffs/_reader.pyi."},
	{Py_tp_new, connection_new},
	{Py_tp_dealloc, connection_dealloc},
	{Py_tp_repr, connection_repr},
	{Py_tp_methods, methods},
	{Py_tp_getset, properties},
	{Py_tp_members, members},
	{0, NULL},
};

static PyType_Spec spec = {
	.name = "ffs._reader.Connection",
	.basicsize = sizeof(struct ffs_connection_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = slots,
};

PyObject *ffs_connection_type_new(PyObject *module)
{
	return PyType_FromModuleAndSpec(module, &spec, NULL);
}
