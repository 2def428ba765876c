/* A CUDA driver without a GPU, for tests of what a machine's driver may say. Memory is the host's, copies happen at once, and
 * kernels do nothing. What goes wrong is told by the environment:
 *
 *   STAND_IN_CUDA=no-gpu          cuInit finds no device
 *   STAND_IN_CUDA=none-listed     cuInit succeeds, and there is no device to count
 *   STAND_IN_CUDA=old             a driver of CUDA 12.4
 *   STAND_IN_CUDA=out-of-memory   memory is said to be free, and cannot be allocated
 *   STAND_IN_CUDA=no-register     no host memory can be registered
 *   STAND_IN_CUDA=in-use          the GPU is another process's alone
 *   STAND_IN_CUDA_MEMORY=BYTES    what is free (512 MiB)
 *   STAND_IN_CUDA_TAKEN=BYTES     what others have besides (0)
 *   STAND_IN_CUDA_LAUNCH=N        the Nth launch, counted from 1, fails; so does every call after it
 *   STAND_IN_CUDA_LATE=1          which is told only when something is waited for, as on a GPU
 *
 * kernels.h, which the test writes, has the kernels' names and the sizes of their arguments. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h" /* static const struct kernel { const char *name; size_t bytes; } KERNELS[] */

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    DEVICES_UNAVAILABLE = 46,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_PERMITTED = 800,
};

static CUresult broken = SUCCESS, breaks_when_waited_for = SUCCESS;
static long launches = 0;
static uint64_t allocated = 0;

static int is(const char *mode) {
    const char *set = getenv("STAND_IN_CUDA");
    return set && strcmp(set, mode) == 0;
}

static long number(const char *name, long otherwise) {
    const char *set = getenv(name);
    return set ? atol(set) : otherwise;
}

static CUresult waited(void) {
    if (breaks_when_waited_for) broken = breaks_when_waited_for;
    return broken;
}

CUresult cuInit(unsigned flags) {
    (void)flags;
    return is("no-gpu") ? NO_DEVICE : SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = is("old") ? 12040 : 13000;
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult e, const char **text) {
    *text = e == OUT_OF_MEMORY   ? "CUDA_ERROR_OUT_OF_MEMORY"
            : e == NO_DEVICE     ? "CUDA_ERROR_NO_DEVICE"
            : e == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
            : e == NOT_PERMITTED ? "CUDA_ERROR_NOT_PERMITTED"
            : e == DEVICES_UNAVAILABLE ? "CUDA_ERROR_DEVICE_UNAVAILABLE"
            : e == NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
                                 : "CUDA_ERROR_INVALID_VALUE";
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult e, const char **text) {
    *text = e == OUT_OF_MEMORY   ? "out of memory"
            : e == NO_DEVICE     ? "no CUDA-capable device is detected"
            : e == LAUNCH_FAILED ? "unspecified launch failure"
            : e == NOT_PERMITTED ? "operation not permitted"
            : e == DEVICES_UNAVAILABLE ? "CUDA-capable device(s) is/are busy or unavailable"
            : e == NOT_FOUND     ? "named symbol not found"
                                 : "invalid argument";
    return SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    *count = is("none-listed") ? 0 : 1;
    return SUCCESS;
}

CUresult cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int len, int device) {
    (void)device;
    strncpy(name, "Stand-in GPU", len);
    return SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = number("STAND_IN_CUDA_MEMORY", 512L << 20) + number("STAND_IN_CUDA_TAKEN", 0);
    return SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 75: *value = 9; break;         /* compute capability, major */
    case 76: *value = 0; break;         /* minor */
    case 16: *value = 132; break;       /* multiprocessors */
    case 13: *value = 1980000; break;   /* clock, kHz */
    case 38: *value = 50 << 20; break;  /* second-level cache */
    default: *value = 0;
    }
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &launches;
    return is("in-use") ? DEVICES_UNAVAILABLE : SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return SUCCESS;
}

CUresult cuCtxSetCurrent(void *context) {
    (void)context;
    return SUCCESS;
}

CUresult cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    *stream = malloc(1);
    return broken;
}

CUresult cuStreamDestroy_v2(void *stream) {
    free(stream);
    return broken;
}

CUresult cuStreamSynchronize(void *stream) {
    (void)stream;
    return waited();
}

CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return broken;
}

CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = malloc(1);
    return broken;
}

CUresult cuEventDestroy_v2(void *event) {
    free(event);
    return broken;
}

CUresult cuEventRecord(void *event, void *stream) {
    (void)event, (void)stream;
    return broken;
}

CUresult cuEventSynchronize(void *event) {
    (void)event;
    return waited();
}

CUresult cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    (void)start, (void)end;
    *milliseconds = 1;
    return broken;
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = number("STAND_IN_CUDA_MEMORY", 512L << 20) - allocated;
    *total = *available + allocated + number("STAND_IN_CUDA_TAKEN", 0);
    return broken;
}

CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    if (broken) return broken;
    if (is("out-of-memory")) return OUT_OF_MEMORY;
    void *memory = NULL;
    if (posix_memalign(&memory, 256, bytes)) return OUT_OF_MEMORY;
    memset(memory, 0, bytes);
    allocated += bytes;
    *at = (CUdeviceptr)(uintptr_t)memory;
    return SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr at) {
    if (broken) return broken;
    free((void *)(uintptr_t)at);
    return SUCCESS;
}

CUresult cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
    (void)at, (void)flags;
    if (is("no-register")) return NOT_PERMITTED;
    return bytes ? broken : INVALID_VALUE;
}

CUresult cuMemHostUnregister(void *at) {
    (void)at;
    return broken;
}

CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    (void)flags;
    *at = malloc(bytes);
    return broken;
}

CUresult cuMemFreeHost(void *at) {
    free(at);
    return broken;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    if (!broken) memcpy((void *)(uintptr_t)to, from, bytes);
    return broken;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
    (void)stream;
    if (!broken) memcpy(to, (void *)(uintptr_t)from, bytes);
    return broken;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
    (void)stream;
    if (!broken) memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return broken;
}

/* CUDA_MEMCPY2D, of which only copies within the device are asked for. */
struct copy {
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    CUdeviceptr from;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    int to_type;
    void *to_host;
    CUdeviceptr to;
    void *to_array;
    size_t to_pitch, width, height;
};

CUresult cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) {
    (void)stream;
    for (size_t row = 0; !broken && row < copy->height; row++)
        memcpy((void *)(uintptr_t)(copy->to + row * copy->to_pitch),
               (void *)(uintptr_t)(copy->from + row * copy->from_pitch), copy->width);
    return broken;
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    if (!broken) memset((void *)(uintptr_t)at, value, bytes);
    return broken;
}

CUresult cuModuleLoadData(void **module, const void *image) {
    *module = (void *)image;
    return broken;
}

CUresult cuModuleUnload(void *module) {
    (void)module;
    return broken;
}

CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)module;
    for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++)
        if (strcmp(KERNELS[i].name, name) == 0) {
            *function = (void *)&KERNELS[i];
            return broken;
        }
    return NOT_FOUND;
}

CUresult cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *bytes) {
    (void)index;
    *offset = 0;
    *bytes = ((const struct kernel *)function)->bytes;
    return broken;
}

CUresult cuFuncSetAttribute(void *function, int attribute, int value) {
    (void)function, (void)attribute, (void)value;
    return broken;
}

CUresult cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *stream, void **arguments, void **extra) {
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz;
    (void)shared, (void)stream, (void)arguments, (void)extra;
    if (++launches == number("STAND_IN_CUDA_LAUNCH", 0)) {
        if (number("STAND_IN_CUDA_LATE", 0))
            breaks_when_waited_for = LAUNCH_FAILED;
        else
            broken = LAUNCH_FAILED;
    }
    return broken;
}
