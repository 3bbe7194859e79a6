/* The module ffs._storage: its types, constants, and the switches that only tests use. */
#include <errno.h>
#include <stdlib.h>

#include "core/crc32c.h"
#include "core/sys.h"
#include "storage/disk.h"
#include "storage/events.h"
#include "storage/module.h"
#include "storage/residency.h"

static PyObject *module_crc_implementation(PyObject *unused, PyObject *unused2)
{
	(void)unused;
	(void)unused2;
	return PyUnicode_FromString(ffs_crc32c_name());
}

static PyObject *module_fault_set(PyObject *unused, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"call", "nth", "error", NULL};
	const char *call;
	unsigned long long nth;
	int error;
	(void)unused;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sKi", names, &call, &nth, &error))
		return NULL;
	int number = ffs_sys_call_by_name(call);
	if (number < 0)
		return PyErr_Format(PyExc_ValueError, "no system call wrapper is named %s", call);
	ffs_sys_fault_set((enum ffs_sys_call)number, nth, error);
	Py_RETURN_NONE;
}

static PyObject *module_fault_counts(PyObject *unused, PyObject *unused2)
{
	(void)unused;
	(void)unused2;
	PyObject *counts = PyDict_New();
	for (int i = 0; counts != NULL && i < FFS_SYS_CALL_COUNT; i++) {
		PyObject *value = PyLong_FromUnsignedLongLong(ffs_sys_call_count((enum ffs_sys_call)i));
		if (value == NULL ||
		    PyDict_SetItemString(counts, ffs_sys_call_name((enum ffs_sys_call)i), value) != 0)
			Py_CLEAR(counts);
		Py_XDECREF(value);
	}
	return counts;
}

/* The names of enum ffs_residency_means, in its order. */
static const char *const means_names[] = {"cachestat", "mincore", "none"};

static PyObject *module_residency_force(PyObject *unused, PyObject *name)
{
	(void)unused;
	for (int i = FFS_MEANS_CACHESTAT; i <= FFS_MEANS_NONE; i++) {
		if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, means_names[i]) == 0) {
			ffs_residency_force((enum ffs_residency_means)i);
			Py_RETURN_NONE;
		}
	}
	return PyErr_Format(PyExc_ValueError, "no means to ask about residency is named %R", name);
}

static PyObject *module_journal_start(PyObject *unused, PyObject *unused2)
{
	(void)unused;
	(void)unused2;
	ffs_journal_start();
	Py_RETURN_NONE;
}

static PyObject *module_journal_bytes(PyObject *unused, PyObject *unused2)
{
	(void)unused;
	(void)unused2;
	return PyLong_FromUnsignedLongLong(ffs_journal_bytes());
}

static PyObject *module_journal_take(PyObject *unused, PyObject *unused2)
{
	size_t length;
	(void)unused;
	(void)unused2;
	uint8_t *bytes = ffs_journal_take(&length);
	if (bytes == NULL && length > 0)
		return PyErr_NoMemory();
	PyObject *result = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)length);
	free(bytes);
	return result;
}

static PyMethodDef module_methods[] = {
	{"crc_implementation", module_crc_implementation, METH_NOARGS, NULL},
	{"fault_set", (PyCFunction)(void (*)(void))module_fault_set, METH_VARARGS | METH_KEYWORDS,
     NULL},
	{"fault_counts", module_fault_counts, METH_NOARGS, NULL},
	{"residency_force", module_residency_force, METH_O, NULL},
	{"journal_start", module_journal_start, METH_NOARGS, NULL},
	{"journal_bytes", module_journal_bytes, METH_NOARGS, NULL},
	{"journal_take", module_journal_take, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

struct ffs_storage_state *ffs_storage_state(PyObject *module)
{
	return PyModule_GetState(module);
}

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
	*type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
	return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

static int module_exec(PyObject *module)
{
	struct ffs_storage_state *state = ffs_storage_state(module);
	if (add_type(module, &ffs_store_spec, &state->store_type) != 0 ||
	    add_type(module, &ffs_loop_spec, &state->loop_type) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_WRITE", FFS_EVENT_WRITE) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_PERSISTED", FFS_EVENT_PERSISTED) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_CLOSED", FFS_EVENT_CLOSED) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_SLOW_READ", FFS_EVENT_SLOW_READ) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_SUSPECT", FFS_EVENT_SUSPECT) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_REFUSED", FFS_EVENT_REFUSED) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_FORWARDED", FFS_EVENT_FORWARDED) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_PEER_CLOSED", FFS_EVENT_PEER_CLOSED) != 0 ||
	    PyModule_AddIntConstant(module, "EVENT_TARGET_STOPPED", FFS_EVENT_TARGET_STOPPED) != 0)
		return -1;
	return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct ffs_storage_state *state = ffs_storage_state(module);
	if (state == NULL)
		return 0;
	Py_VISIT(state->store_type);
	Py_VISIT(state->loop_type);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct ffs_storage_state *state = ffs_storage_state(module);
	if (state == NULL)
		return 0;
	Py_CLEAR(state->store_type);
	Py_CLEAR(state->loop_type);
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_storage",
	.m_doc = "The storage daemon's C engine: the chunk store and the data loop.",
	.m_size = sizeof(struct ffs_storage_state),
	.m_methods = module_methods,
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__storage(void)
{
	return PyModuleDef_Init(&module_definition);
}
