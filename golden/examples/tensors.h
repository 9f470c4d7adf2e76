/* Tensors as the examples hold them: all numbers as double, row by row. */
#ifndef TENSORS_H
#define TENSORS_H

#include "json.h"

typedef struct {
    int rank;
    size_t shape[8], count;
    double *data;
} tensor;

typedef struct {
    size_t count;
    char **names;
    tensor **tensors;
} tensor_file;

tensor *tensor_new(int rank, const size_t *shape);         /* zeros */
tensor_file *read_safetensors(const char *path);
tensor *find_tensor(const tensor_file *file, const char *name);   /* NULL where there is none */

#endif
