/* The operations that the models are made of, in double; every formula is in docs/spec/operations.md and rotary.md. */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "tensors.h"

tensor *layer_norm(const tensor *x, const tensor *weight, const tensor *bias, double eps);
tensor *linear(const tensor *x, const tensor *weight, const tensor *bias);       /* bias may be NULL */
tensor *softmax(const tensor *x);
tensor *activation(const tensor *x, const char *name, const tensor_file *parameters);   /* NULL: it has none */
tensor *rotary(const tensor *x, const tensor *cos, const tensor *sin);
void rotary_tables(const json *rope, int head_dim, double max_positions, const tensor *positions, tensor **cos, tensor **sin);
int rotary_width(const json *rope, int head_dim);
/* context; the weights go to *weights. mask: added to the scores, or NULL: causal */
tensor *attention(const tensor *query, const tensor *key, const tensor *value, const tensor *mask, double scale,
                  tensor **weights);

#endif
