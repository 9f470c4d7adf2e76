#include "tensors.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

tensor *tensor_new(int rank, const size_t *shape) {
    tensor *made = keep(sizeof *made);
    made->rank = rank;
    made->count = 1;
    for (int i = 0; i < rank; i++) made->count *= made->shape[i] = shape[i];
    made->data = keep(made->count * sizeof(double));
    return made;
}

/* float16: 1 bit sign, 5 bits exponent, 10 bits of the number */
static double half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0    ? ldexp(fraction, -24)
                  : exponent == 31 ? (fraction ? NAN : INFINITY)
                                   : ldexp(fraction + 1024, exponent - 25);
    return bits >> 15 ? -size : size;
}

/* One number of a little-endian file, as this machine is. */
static double number(const char *dtype, const char *from) {
    double f64;
    float f32;
    int64_t i64;
    int32_t i32;
    uint16_t u16;
    if (!strcmp(dtype, "F64")) return memcpy(&f64, from, 8), f64;
    if (!strcmp(dtype, "F32")) return memcpy(&f32, from, 4), f32;
    if (!strcmp(dtype, "F16")) return memcpy(&u16, from, 2), half(u16);
    if (!strcmp(dtype, "I64")) return memcpy(&i64, from, 8), (double)i64;
    if (!strcmp(dtype, "I32")) return memcpy(&i32, from, 4), i32;
    return (unsigned char)*from; /* U8, BOOL */
}

static size_t bytes_of(const char *dtype) {
    static const struct { const char *name; size_t bytes; } sizes[] = {
        {"F64", 8}, {"F32", 4}, {"F16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}, {"BOOL", 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!strcmp(sizes[i].name, dtype)) return sizes[i].bytes;
    give_up("unknown dtype %s", dtype);
    return 0;
}

tensor_file *read_safetensors(const char *path) {
    size_t size;
    char *data = read_file(path, &size);
    uint64_t length = 0; /* 8 bytes: how long the JSON is that follows */
    if (size < 8 || (memcpy(&length, data, 8), length > size - 8)) give_up("%s: cut off", path);
    char *start = data + 8 + length, *header = keep(length);
    memcpy(header, data + 8, length);
    json *entries = json_parse(header);
    tensor_file *file = keep(sizeof *file);
    file->names = keep(entries->count * sizeof *file->names);
    file->tensors = keep(entries->count * sizeof *file->tensors);
    for (size_t i = 0; i < entries->count; i++) {
        json *entry = entries->items[i], *shape = json_get(entry, "shape"), *place = json_get(entry, "data_offsets");
        if (!strcmp(entries->keys[i], "__metadata__")) continue;
        const char *dtype = json_text(entry, "dtype", "");
        if (!shape || shape->count > 8 || !place || place->count != 2) give_up("%s: a wrong entry", path);
        size_t sizes[8];
        for (size_t j = 0; j < shape->count; j++) sizes[j] = (size_t)shape->items[j]->number;
        tensor *made = tensor_new((int)shape->count, sizes);
        size_t step = bytes_of(dtype), begin = (size_t)place->items[0]->number;
        if (begin + made->count * step > size - 8 - length) give_up("%s: cut off", path);
        for (size_t j = 0; j < made->count; j++) made->data[j] = number(dtype, start + begin + j * step);
        file->names[file->count] = entries->keys[i];
        file->tensors[file->count++] = made;
    }
    return file;
}

tensor *find_tensor(const tensor_file *file, const char *name) {
    for (size_t i = 0; i < file->count; i++)
        if (!strcmp(file->names[i], name)) return file->tensors[i];
    return NULL;
}
