#include "operations.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

static tensor *like(const tensor *x) { return tensor_new(x->rank, x->shape); }

static size_t last(const tensor *x) { return x->shape[x->rank - 1]; }

tensor *layer_norm(const tensor *x, const tensor *weight, const tensor *bias, double eps) {
    tensor *y = like(x);
    size_t width = last(x);
    for (size_t row = 0; row < x->count; row += width) {
        const double *in = x->data + row;
        double mean = 0, variance = 0;
        for (size_t i = 0; i < width; i++) mean += in[i] / (double)width;
        for (size_t i = 0; i < width; i++) variance += (in[i] - mean) * (in[i] - mean) / (double)width;
        for (size_t i = 0; i < width; i++)
            y->data[row + i] = (in[i] - mean) / sqrt(variance + eps) * weight->data[i] + bias->data[i];
    }
    return y;
}

tensor *linear(const tensor *x, const tensor *weight, const tensor *bias) {
    size_t in = last(x), out = weight->shape[0], shape[8];
    if (weight->shape[1] != in) give_up("linear: the shapes do not fit");
    memcpy(shape, x->shape, sizeof shape);
    shape[x->rank - 1] = out;
    tensor *y = tensor_new(x->rank, shape);
    for (size_t row = 0; row < x->count / in; row++)
        for (size_t o = 0; o < out; o++) {
            double sum = bias ? bias->data[o] : 0;
            for (size_t i = 0; i < in; i++) sum += x->data[row * in + i] * weight->data[o * in + i];
            y->data[row * out + o] = sum;
        }
    return y;
}

/* A row in which everything is hidden (-inf) becomes zeros. */
static void softmax_row(const double *in, double *out, size_t width) {
    double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < width; i++) largest = fmax(largest, in[i]);
    for (size_t i = 0; i < width; i++) sum += out[i] = isinf(largest) ? 0 : exp(in[i] - largest);
    for (size_t i = 0; i < width; i++) out[i] = sum > 0 ? out[i] / sum : 0;
}

tensor *softmax(const tensor *x) {
    tensor *y = like(x);
    for (size_t row = 0; row < x->count; row += last(x)) softmax_row(x->data + row, y->data + row, last(x));
    return y;
}

/* ---- activations */

static double phi(double x) { return erfc(-x / sqrt(2)) / 2; }
static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static double softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static double gelu(double x) { return x * phi(x); }
static double gelu_tanh(double x) { return x / 2 * (1 + tanh(sqrt(2 / PI) * (x + 0.044715 * x * x * x))); }
static double gelu_fast(double x) { return x / 2 * (1 + tanh(0.7978845608 * x * (1 + 0.044715 * x * x))); }
static double gelu_10(double x) { return fmin(fmax(gelu(x), -10), 10); }
static double quick_gelu(double x) { return x * sigmoid(1.702 * x); }
static double silu(double x) { return x * sigmoid(x); }
static double relu(double x) { return fmax(x, 0); }
static double relu2(double x) { return relu(x) * relu(x); }
static double relu6(double x) { return fmin(relu(x), 6); }
static double leaky_relu(double x) { return x >= 0 ? x : 0.01 * x; }
static double hardswish(double x) { return x * fmin(fmax(x + 3, 0), 6) / 6; }
static double mish(double x) { return x * tanh(softplus(x)); }
static double sqrtsoftplus(double x) { return sqrt(softplus(x)); }
static double laplace(double x) { return phi((x - 0.707107) / 0.282095); }
static double same(double x) { return x; }

static const struct { const char *name; double (*function)(double); } FUNCTIONS[] = {
    {"gelu", gelu}, {"gelu_python", gelu}, {"gelu_new", gelu_tanh}, {"gelu_pytorch_tanh", gelu_tanh},
    {"gelu_python_tanh", gelu_tanh}, {"gelu_accurate", gelu_tanh}, {"gelu_fast", gelu_fast}, {"gelu_10", gelu_10},
    {"quick_gelu", quick_gelu}, {"silu", silu}, {"swish", silu}, {"sigmoid", sigmoid}, {"relu", relu},
    {"relu2", relu2}, {"relu6", relu6}, {"leaky_relu", leaky_relu}, {"hardswish", hardswish}, {"mish", mish},
    {"sqrtsoftplus", sqrtsoftplus}, {"laplace", laplace}, {"tanh", tanh}, {"linear", same}};

static double parameter(const tensor_file *parameters, const char *name) {
    tensor *found = parameters ? find_tensor(parameters, name) : NULL;
    if (!found) give_up("the parameter %s is missing", name);
    return found->data[0];
}

tensor *activation(const tensor *x, const char *name, const tensor_file *parameters) {
    tensor *y = like(x);
    for (size_t f = 0; f < sizeof FUNCTIONS / sizeof *FUNCTIONS; f++)
        if (!strcmp(FUNCTIONS[f].name, name)) {
            for (size_t i = 0; i < x->count; i++) y->data[i] = FUNCTIONS[f].function(x->data[i]);
            return y;
        }
    if (!strcmp(name, "prelu")) {
        double weight = parameter(parameters, "weight");
        for (size_t i = 0; i < x->count; i++) y->data[i] = x->data[i] >= 0 ? x->data[i] : weight * x->data[i];
        return y;
    }
    if (strcmp(name, "xielu")) give_up("the activation %s", name);
    double up = softplus(parameter(parameters, "alpha_p")), down = softplus(parameter(parameters, "alpha_n"));
    double beta = parameter(parameters, "beta"), eps = parameter(parameters, "eps");
    for (size_t i = 0; i < x->count; i++) {
        double v = x->data[i];
        y->data[i] = (v > 0 ? up * v * v : (beta + down) * (expm1(fmin(v, eps)) - v)) + beta * v;
    }
    return y;
}

/* ---- positions */

int rotary_width(const json *rope, int head_dim) {
    return (int)(head_dim * json_number(rope, "partial_rotary_factor", 1));
}

static double clip(double x, double low, double high) { return fmin(fmax(x, low), high); }

static double yarn_scale(double factor, double m) { return factor > 1 ? 0.1 * m * log(factor) + 1 : 1; }

/* Frequencies f[i], and the attention factor as the result. */
static double frequencies(const json *rope, int width, double base, double most, double length, double *f) {
    const char *type = json_text(rope, "rope_type", "default");
    double factor = json_number(rope, "factor", 0), original = json_number(rope, "original_max_position_embeddings", most);
    double attention = json_number(rope, "attention_factor", -1);
    int pairs = width / 2;
    if (!strcmp(type, "dynamic")) {
        double reach = fmax(length, most);
        base *= pow(factor * reach / most - (factor - 1), (double)width / (width - 2));
    }
    for (int i = 0; i < pairs; i++) f[i] = pow(base, -2.0 * i / width);
    if (!strcmp(type, "default") || !strcmp(type, "dynamic")) return 1;
    if (!strcmp(type, "linear")) {
        for (int i = 0; i < pairs; i++) f[i] /= factor;
        return 1;
    }
    if (!strcmp(type, "llama3")) {
        double slow = json_number(rope, "low_freq_factor", 1), fast = json_number(rope, "high_freq_factor", 4);
        for (int i = 0; i < pairs; i++) {
            double share = clip((original * f[i] / (2 * PI) - slow) / (fast - slow), 0, 1);
            f[i] = f[i] * share + f[i] / factor * (1 - share);
        }
        return 1;
    }
    if (factor == 0) factor = most / original;
    if (!strcmp(type, "longrope")) {
        json *list = json_get(rope, length <= original ? "short_factor" : "long_factor");
        if (!list || list->count != (size_t)pairs) give_up("longrope: a list of %d factors is wanted", pairs);
        for (int i = 0; i < pairs; i++) f[i] /= list->items[i]->number;
        if (attention >= 0) return attention;
        return factor > 1 ? sqrt(1 + log(factor) / log(original)) : 1;
    }
    if (strcmp(type, "yarn")) give_up("the rope_type %s", type);
    double fast = json_number(rope, "beta_fast", 32), slow = json_number(rope, "beta_slow", 1);
    double low = width * log(original / (2 * PI * fast)) / (2 * log(base));
    double high = width * log(original / (2 * PI * slow)) / (2 * log(base));
    if (json_number(rope, "truncate", 1) != 0) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, width - 1);
    if (low == high) high += 0.001;
    for (int i = 0; i < pairs; i++) {
        double ramp = clip((i - low) / (high - low), 0, 1);
        f[i] = f[i] * (1 - ramp) + f[i] / factor * ramp;
    }
    if (attention >= 0) return attention;
    double m = json_number(rope, "mscale", 0), all = json_number(rope, "mscale_all_dim", 0);
    return m != 0 && all != 0 ? yarn_scale(factor, m) / yarn_scale(factor, all) : yarn_scale(factor, 1);
}

void rotary_tables(const json *rope, int head_dim, double max_positions, const tensor *positions, tensor **cosines,
                   tensor **sines) {
    int width = rotary_width(rope, head_dim);
    size_t pairs = (size_t)width / 2, shape[8], at = 0;
    memcpy(shape, positions->shape, sizeof shape);
    shape[positions->rank] = pairs;
    *cosines = tensor_new(positions->rank + 1, shape);
    *sines = tensor_new(positions->rank + 1, shape);
    double length = 0, *f = keep(pairs * sizeof *f);
    for (size_t i = 0; i < positions->count; i++) length = fmax(length, positions->data[i] + 1);
    double factor = frequencies(rope, width, json_number(rope, "rope_theta", 10000), max_positions, length, f);
    for (size_t i = 0; i < positions->count; i++)
        for (size_t j = 0; j < pairs; j++, at++) {
            (*cosines)->data[at] = factor * cos(positions->data[i] * f[j]);
            (*sines)->data[at] = factor * sin(positions->data[i] * f[j]);
        }
}

/* x [batch, heads, seq, head_dim]; cos and sin [batch or 1, seq, pairs]: dimension i is paired with i + pairs. */
tensor *rotary(const tensor *x, const tensor *cosines, const tensor *sines) {
    tensor *y = like(x);
    memcpy(y->data, x->data, x->count * sizeof *x->data);
    size_t heads = x->shape[1], seq = x->shape[2], width = x->shape[3], pairs = last(cosines);
    for (size_t row = 0; row < x->count / width; row++) {
        size_t batch = cosines->shape[0] == 1 ? 0 : row / (heads * seq), place = (batch * seq + row % seq) * pairs;
        double *first = y->data + row * width, *second = first + pairs;
        for (size_t i = 0; i < pairs; i++) {
            double a = first[i], b = second[i], c = cosines->data[place + i], s = sines->data[place + i];
            first[i] = a * c - b * s;
            second[i] = b * c + a * s;
        }
    }
    return y;
}

tensor *attention(const tensor *query, const tensor *key, const tensor *value, const tensor *mask, double scale,
                  tensor **weights) {
    size_t batch = query->shape[0], heads = query->shape[1], queries = query->shape[2], width = query->shape[3];
    size_t keys = key->shape[2], past = keys - queries, shape[4] = {batch, heads, queries, keys};
    tensor *context = like(query), *scores = tensor_new(4, shape);
    for (size_t b = 0; b < batch; b++)
        for (size_t h = 0; h < heads; h++)
            for (size_t q = 0; q < queries; q++) {
                size_t head = b * heads + h, at = (head * queries + q) * keys;
                const double *mine = query->data + (head * queries + q) * width;
                for (size_t k = 0; k < keys; k++) {
                    double sum = 0;
                    for (size_t i = 0; i < width; i++) sum += mine[i] * key->data[(head * keys + k) * width + i];
                    scores->data[at + k] = scale * sum;
                    if (mask) {
                        size_t row = mask->shape[0] == 1 ? 0 : b, column = mask->shape[1] == 1 ? 0 : h;
                        scores->data[at + k] += mask->data[((row * mask->shape[1] + column) * queries + q) * keys + k];
                    } else if (k > past + q) {
                        scores->data[at + k] = -INFINITY;
                    }
                }
                softmax_row(scores->data + at, scores->data + at, keys);
                for (size_t k = 0; k < keys; k++)
                    for (size_t i = 0; i < width; i++)
                        context->data[(head * queries + q) * width + i] +=
                            scores->data[at + k] * value->data[(head * keys + k) * width + i];
            }
    *weights = scores;
    return context;
}
