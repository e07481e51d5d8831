/* libFuzzer's two entries. Python is needed to begin with: for limits and certificates, as the agent makes them. The name of
 * the program is the target's; its directory has the compiled modules. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sanitizer/lsan_interface.h>
#include <stdint.h>
#include <string.h>

#include "mutator.h"

/* The Python that it is linked with, whichever comes first in somebody's PATH. */
static void begin_python(void)
{
    PyConfig config;
    PyStatus status;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    status = PyConfig_SetBytesString(&config, &config.home, PYTHON_HOME);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    PyConfig_Clear(&config);
}

static int scripted; /* inputs are scripts */
static void (*one)(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    PyObject *module, *address = NULL;
    (void)count;
    __lsan_disable(); /* what Python and its packages never free */
    begin_python();
    module = PyImport_ImportModule("tests.fuzz.begin");
    if (module != NULL)
        address = PyObject_CallMethod(module, "begin", "s", (*arguments)[0]);
    if (address == NULL) {
        PyErr_Print();
        exit(1);
    }
    one = (void (*)(const uint8_t *, size_t))PyLong_AsSize_t(address);
    scripted = strstr((*arguments)[0], "certificate") == NULL;
    __lsan_enable();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    one(data, size);
    return 0;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    return scripted ? script_mutate(data, size, most, seed) : LLVMFuzzerMutate(data, size, most);
}
