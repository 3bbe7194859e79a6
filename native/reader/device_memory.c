/*
 * ffs._reader.DeviceMemory: a Python object around one struct ffs_device_memory. See
 * ffs/_reader.pyi. Next hop: batch_calls.c, which reads into it.
 */
#include "reader/module.h"

#include <structmember.h>
#include <unistd.h>

#include "core/sys.h"
#include "reader/device_memory.h"

struct device_memory_object {
	PyObject_HEAD struct ffs_device_memory memory;
	unsigned long long address;
	PyObject *owner;
};

const struct ffs_device_memory *ffs_device_memory_of(const struct ffs_module_state *state,
                                                     PyObject *object)
{
	if (!Py_IS_TYPE(object, (PyTypeObject *)state->device_memory_type))
		return NULL;
	return &((struct device_memory_object *)object)->memory;
}

/* A card maps whole pages: within one, address and offset must agree. */
static int check(unsigned long long bytes, unsigned long long address, unsigned long long offset)
{
	unsigned long long page = (unsigned long long)sysconf(_SC_PAGESIZE), end;
	if (bytes == 0 || address == 0 || __builtin_add_overflow(address, bytes, &end) ||
	    __builtin_add_overflow(offset, bytes, &end)) {
		PyErr_SetString(PyExc_ValueError, "no device has memory there");
		return -1;
	}
	if (address % page != offset % page) {
		PyErr_SetString(PyExc_ValueError, "address and offset differ within a page");
		return -1;
	}
	return 0;
}

static PyObject *device_memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", "nbytes", "address", "offset", "owner", NULL};
	unsigned long long bytes, address, offset = 0;
	PyObject *owner = NULL;
	int fd;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iKK|$KO:DeviceMemory", names, &fd, &bytes,
	                                 &address, &offset, &owner) ||
	    check(bytes, address, offset) != 0)
		return NULL;
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct device_memory_object *self = (struct device_memory_object *)alloc(type, 0);
	if (self == NULL)
		return NULL;
	self->address = address;
	self->memory = (struct ffs_device_memory){.fd = ffs_sys_dup(fd),
	                                          .memory = (uint8_t *)(uintptr_t)address,
	                                          .bytes = bytes,
	                                          .offset = offset};
	if (self->memory.fd < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		Py_DECREF(self);
		return NULL;
	}
	Py_XINCREF(owner);
	self->owner = owner;
	return (PyObject *)self;
}

/* No call uses it: a call keeps a reference. */
static void device_memory_dealloc(PyObject *object)
{
	struct device_memory_object *self = (struct device_memory_object *)object;
	PyTypeObject *type = Py_TYPE(object);
	if (self->memory.fd >= 0)
		(void)ffs_sys_close(self->memory.fd);
	Py_XDECREF(self->owner);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	release(object);
	Py_DECREF(type);
}

static PyObject *device_memory_nbytes(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromSize_t(((struct device_memory_object *)self)->memory.bytes);
}

static PyMemberDef members[] = {
	{"address", T_ULONGLONG, offsetof(struct device_memory_object, address), READONLY,
     "Where the device has it."},
	{NULL, 0, 0, 0, NULL},
};

static PyGetSetDef properties[] = {
	{"nbytes", device_memory_nbytes, NULL, "How long it is.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
	{Py_tp_doc, "Memory of a device that RDMA reads into. See ffs/_reader.pyi."},
	{Py_tp_new, device_memory_new},
	{Py_tp_dealloc, device_memory_dealloc},
	{Py_tp_members, members},
	{Py_tp_getset, properties},
	{0, NULL},
};

static PyType_Spec spec = {
	.name = "ffs._reader.DeviceMemory",
	.basicsize = sizeof(struct device_memory_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = slots,
};

PyObject *ffs_device_memory_type_new(PyObject *module)
{
	return PyType_FromModuleAndSpec(module, &spec, NULL);
}
