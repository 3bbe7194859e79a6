/*
 * ffs._reader: the module itself. What it does is in ffs/_reader.pyi; client/settle.py runs
 * its calls, batch.h tells the way through the files.
 *
 * Limited API 3.11 (one abi3 file), multi-phase init, state per module object. Process-wide are
 * only the counters and durations, the fork generation, the CRC choice and the fault switch:
 * atomics, and the slowest calls behind a lock.
 */
#include "reader/module.h"

#include <errno.h>

#include "core/status.h"
#include "reader/batch.h"
#include "reader/counters.h"

/* A type of ours, by its name; what is in the module keeps it alive. */
static int add_region_type(PyObject *module)
{
	PyObject *type = ffs_region_type_new(module);
	int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, "Region", type);
	Py_XDECREF(type);
	return failed;
}

static int add_constants(PyObject *module)
{
	return PyModule_AddIntConstant(module, "READ_OP_BYTES", FFS_OP_BYTES) ||
	       PyModule_AddIntConstant(module, "WRITE_OP_BYTES", FFS_OP_BYTES) ||
	       PyModule_AddIntConstant(module, "TIMING_BYTES", FFS_TIMING_BYTES) ||
	       PyModule_AddIntConstant(module, "STATUS_PENDING", FFS_STATUS_PENDING);
}

static int module_exec(PyObject *module)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	int error = ffs_fork_guard_install();
	if (error != 0) {
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	state->connection_type = ffs_connection_type_new(module);
	if (state->connection_type == NULL ||
	    PyModule_AddObjectRef(module, "Connection", state->connection_type) != 0 ||
	    (state->mapping_type = ffs_mapping_type_new(module)) == NULL ||
	    PyModule_AddObjectRef(module, "Mapping", state->mapping_type) != 0 ||
	    (state->device_memory_type = ffs_device_memory_type_new(module)) == NULL ||
	    PyModule_AddObjectRef(module, "DeviceMemory", state->device_memory_type) != 0 ||
	    add_region_type(module) != 0 || add_constants(module) != 0)
		return -1;
	return PyModule_AddFunctions(module, ffs_batch_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_ask_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_qp_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_range_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_mapped_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_sample_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_latency_methods) != 0 ||
	               PyModule_AddFunctions(module, ffs_tool_methods) != 0
	           ? -1
	           : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	Py_VISIT(state->connection_type);
	Py_VISIT(state->mapping_type);
	Py_VISIT(state->device_memory_type);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct ffs_module_state *state = PyModule_GetState(module);
	Py_CLEAR(state->connection_type);
	Py_CLEAR(state->mapping_type);
	Py_CLEAR(state->device_memory_type);
	return 0;
}

static PyModuleDef_Slot slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static PyModuleDef definition = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "ffs._reader",
	.m_doc = "The client's C engine: moves and checks bytes, decides nothing.",
	.m_size = sizeof(struct ffs_module_state),
	.m_slots = slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__reader(void)
{
	return PyModuleDef_Init(&definition);
}
