/* A cuBLASLt without a GPU, beside libcuda.c, whose device memory is the host's: it multiplies as the library's manual says that
 * matrices are laid out (by columns, with leading dimensions), in f32 and bf16 with f32 sums, and refuses what the library would. An
 * algorithm is 64 bytes, as the library's are, of which the first word says which choice it was.
 *
 *   STAND_IN_CUBLASLT_LOG=FILE     a line for each choice and each product is added to it
 *   STAND_IN_CUBLASLT_FIRST=N      the number of the first choice (1): another process's choices differ
 *   STAND_IN_CUBLASLT_VERSION=V    130100 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
/* cudaDataType_t, cublasComputeType_t, and the attributes that are set. */
enum { F32 = 0, BF16 = 14, COMPUTE_32F = 68, TRANSA = 3, WORKSPACE_BYTES = 1, REDUCTION_SCHEMES = 3 };

struct description { int compute, scale, transposed_a; };
struct layout { int type; uint64_t rows, columns; int64_t leading; };
struct preference { size_t workspace; uint32_t reduction_schemes; };
struct algorithm { uint64_t words[8]; };
struct choice { struct algorithm algorithm; size_t workspace; Status state; float waves; int reserved[4]; };

static long number(const char *name, long otherwise) {
    const char *set = getenv(name);
    return set ? atol(set) : otherwise;
}

static void note(const char *format, ...) {
    const char *path = getenv("STAND_IN_CUBLASLT_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list what;
    va_start(what, format);
    vfprintf(file, format, what);
    va_end(what);
    fclose(file);
}

size_t cublasLtGetVersion(void) { return number("STAND_IN_CUBLASLT_VERSION", 130100); }

Status cublasLtCreate(void **handle) {
    *handle = malloc(1);
    return SUCCESS;
}

Status cublasLtDestroy(void *handle) {
    free(handle);
    return SUCCESS;
}

Status cublasLtMatmulDescCreate(struct description **made, int compute, int scale) {
    *made = calloc(1, sizeof **made);
    (*made)->compute = compute;
    (*made)->scale = scale;
    return SUCCESS;
}

Status cublasLtMatmulDescSetAttribute(struct description *of, int attribute, const void *value, size_t bytes) {
    if (attribute != TRANSA || bytes != 4) return INVALID_VALUE;
    memcpy(&of->transposed_a, value, 4);
    return SUCCESS;
}

Status cublasLtMatmulDescDestroy(struct description *of) {
    free(of);
    return SUCCESS;
}

Status cublasLtMatrixLayoutCreate(struct layout **made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < (int64_t)rows) return INVALID_VALUE;
    *made = malloc(sizeof **made);
    **made = (struct layout){type, rows, columns, leading};
    return SUCCESS;
}

Status cublasLtMatrixLayoutDestroy(struct layout *of) {
    free(of);
    return SUCCESS;
}

Status cublasLtMatmulPreferenceCreate(struct preference **made) {
    *made = malloc(sizeof **made);
    /* The library's own: no workspace, every scheme by which a split over K may be summed. */
    **made = (struct preference){0, UINT32_MAX};
    return SUCCESS;
}

Status cublasLtMatmulPreferenceSetAttribute(struct preference *of, int attribute, const void *value, size_t bytes) {
    if (attribute == WORKSPACE_BYTES && bytes == sizeof of->workspace)
        memcpy(&of->workspace, value, bytes);
    else if (attribute == REDUCTION_SCHEMES && bytes == sizeof of->reduction_schemes)
        memcpy(&of->reduction_schemes, value, bytes);
    else
        return INVALID_VALUE;
    return SUCCESS;
}

Status cublasLtMatmulPreferenceDestroy(struct preference *of) {
    free(of);
    return SUCCESS;
}

/* Whether D = op(A) · B of these layouts is a product that is offered: A transposed, everything of one type, sums in f32. */
static Status offered(const struct description *of, const struct layout *a, const struct layout *b, const struct layout *d) {
    if (of->compute != COMPUTE_32F || of->scale != F32) return NOT_SUPPORTED;
    if (a->type != b->type || a->type != d->type || (a->type != F32 && a->type != BF16))
        return NOT_SUPPORTED;
    if (!of->transposed_a || a->rows != b->rows || a->columns != d->rows || b->columns != d->columns) return INVALID_VALUE;
    return SUCCESS;
}

Status cublasLtMatmulAlgoGetHeuristic(void *handle, struct description *of, struct layout *a, struct layout *b, struct layout *c,
                                      struct layout *d, struct preference *wish, int asked, struct choice *found, int *count) {
    static long choices = 0;
    (void)handle, (void)c, (void)asked;
    Status status = offered(of, a, b, d);
    if (status) return status;
    memset(found, 0, sizeof *found);
    found->algorithm.words[0] = number("STAND_IN_CUBLASLT_FIRST", 1) + choices++;
    found->algorithm.words[7] = UINT64_MAX;
    *count = 1;
    note("choose m=%ld n=%ld k=%ld type=%d reductions=%u workspace=%zu algorithm=%ld\n", (long)d->columns, (long)d->rows,
         (long)a->rows, a->type, wish->reduction_schemes, wish->workspace, (long)found->algorithm.words[0]);
    return SUCCESS;
}

static float read(const void *from, size_t i, int type) {
    if (type == F32) return ((const float *)from)[i];
    uint32_t wide = (uint32_t)((const uint16_t *)from)[i] << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static void write(void *to, size_t i, int type, float value) {
    if (type == F32) {
        ((float *)to)[i] = value;
        return;
    }
    uint32_t wide;
    memcpy(&wide, &value, 4);
    wide += 0x7fff + (wide >> 16 & 1); /* to the nearest, ties to even */
    ((uint16_t *)to)[i] = wide >> 16;
}

Status cublasLtMatmul(void *handle, struct description *of, const float *alpha, const void *A, struct layout *a, const void *B,
                      struct layout *b, const float *beta, const void *C, struct layout *c, void *D, struct layout *d,
                      const struct algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    (void)handle, (void)C, (void)c, (void)workspace_bytes, (void)stream;
    Status status = offered(of, a, b, d);
    if (status) return status;
    /* Algorithms are chosen for addresses that are multiples of 256 where no preference says otherwise. */
    const void *places[] = {A, B, D, workspace};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)places[i] % 256) return INVALID_VALUE;
    if (algorithm->words[7] != UINT64_MAX || *alpha != 1 || *beta != 0) return INVALID_VALUE;
    note("multiply m=%ld n=%ld k=%ld algorithm=%ld\n", (long)d->columns, (long)d->rows, (long)a->rows, (long)algorithm->words[0]);
    for (uint64_t column = 0; column < d->columns; column++)
        for (uint64_t row = 0; row < d->rows; row++) {
            float sum = 0;
            for (uint64_t k = 0; k < a->rows; k++)
                sum += read(A, row * a->leading + k, a->type) * read(B, column * b->leading + k, b->type);
            write(D, column * d->leading + row, d->type, sum);
        }
    return SUCCESS;
}
