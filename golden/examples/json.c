#include "json.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory: a chain of blocks, freed together */

typedef struct block {
    struct block *next;
    double data[];
} block;

static block *blocks;

void *keep(size_t bytes) {
    block *made = calloc(1, sizeof(block) + bytes + 1);
    if (!made) give_up("out of memory");
    made->next = blocks;
    blocks = made;
    return made->data;
}

void forget(void) {
    while (blocks) {
        block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) give_up("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    char *data = keep(length < 0 ? 0 : (size_t)length);
    if (length < 0 || fread(data, 1, (size_t)length, file) != (size_t)length) {
        fclose(file);
        give_up("cannot read %s", path);
    }
    fclose(file);
    if (size) *size = (size_t)length;
    return data;
}

/* ---- parsing */

static const char *at;

static json *value(int depth);

static void blank(void) {
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') at++;
}

static void expect(char wanted) {
    blank();
    if (*at != wanted) give_up("JSON: '%c' expected at: %.20s", wanted, at);
    at++;
}

static unsigned hex4(void) {
    unsigned code = 0;
    for (int i = 0; i < 4; i++, at++) {
        if (!isxdigit((unsigned char)*at)) give_up("JSON: a wrong \\u escape");
        code = code * 16 + (unsigned)(isdigit((unsigned char)*at) ? *at - '0' : (*at | 32) - 'a' + 10);
    }
    return code;
}

static char *utf8(char *out, unsigned code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 63));
        *out++ = (char)(0x80 | (code & 63));
    } else {
        *out++ = (char)(0xF0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 63));
        *out++ = (char)(0x80 | (code >> 6 & 63));
        *out++ = (char)(0x80 | (code & 63));
    }
    return out;
}

static char *text(void) {
    expect('"');
    size_t room = 0;
    while (at[room] && at[room] != '"') room += at[room] == '\\' && at[room + 1] ? 2 : 1;
    char *made = keep(room), *out = made;
    while (*at != '"') {
        if (!*at) give_up("JSON: a text without an end");
        if (*at != '\\') {
            *out++ = *at++;
            continue;
        }
        at++;
        char escape = *at++;
        const char *from = "bfnrt", *to = "\b\f\n\r\t", *found = escape ? strchr(from, escape) : NULL;
        if (escape == 'u') {
            unsigned code = hex4();
            if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u') {
                at += 2;
                code = 0x10000 + ((code - 0xD800) << 10) + (hex4() - 0xDC00);
            }
            out = utf8(out, code);
        } else if (found) {
            *out++ = to[found - from];
        } else {
            *out++ = escape;
        }
    }
    at++;
    return made;
}

static void add(json *parent, char *key, json *item) {
    /* The room doubles: it is full whenever the count is a power of two. */
    if ((parent->count & (parent->count - 1)) == 0) {
        size_t room = parent->count ? 2 * parent->count : 1;
        json **items = keep(room * sizeof *items);
        char **keys = keep(room * sizeof *keys);
        if (parent->count) {
            memcpy(items, parent->items, parent->count * sizeof *items);
            memcpy(keys, parent->keys, parent->count * sizeof *keys);
        }
        parent->items = items;
        parent->keys = keys;
    }
    parent->keys[parent->count] = key;
    parent->items[parent->count++] = item;
}

static json *members(json *parent, char end, int depth) {
    at++;
    blank();
    if (*at == end) {
        at++;
        return parent;
    }
    for (;;) {
        char *key = NULL;
        if (end == '}') {
            key = text();
            expect(':');
        }
        add(parent, key, value(depth + 1));
        blank();
        if (*at == end) break;
        expect(',');
        blank();
    }
    at++;
    return parent;
}

static json *value(int depth) {
    if (depth > 100) give_up("JSON: too deep");
    json *made = keep(sizeof *made);
    blank();
    if (*at == '{' || *at == '[') {
        made->kind = *at == '{' ? J_OBJECT : J_LIST;
        return members(made, *at == '{' ? '}' : ']', depth);
    }
    if (*at == '"') {
        made->kind = J_TEXT;
        made->text = text();
        return made;
    }
    static const struct { const char *word; json_kind kind; double number; } words[] = {
        {"null", J_NULL, 0}, {"true", J_BOOL, 1}, {"false", J_BOOL, 0}};
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(words[i].word);
        if (strncmp(at, words[i].word, length) == 0) {
            at += length;
            made->kind = words[i].kind;
            made->number = words[i].number;
            return made;
        }
    }
    char *end;
    made->kind = J_NUMBER;
    made->number = strtod(at, &end);
    if (end == at) give_up("JSON: no value at: %.20s", at);
    at = end;
    return made;
}

json *json_parse(const char *source) {
    at = source;
    json *made = value(0);
    blank();
    if (*at) give_up("JSON: something behind the value: %.20s", at);
    return made;
}

/* ---- looking into it */

json *json_get(const json *object, const char *key) {
    if (!object || object->kind != J_OBJECT) return NULL;
    for (size_t i = 0; i < object->count; i++)
        if (strcmp(object->keys[i], key) == 0) return object->items[i]->kind == J_NULL ? NULL : object->items[i];
    return NULL;
}

double json_number(const json *object, const char *key, double otherwise) {
    json *found = json_get(object, key);
    if (!found) return otherwise;
    if (found->kind != J_NUMBER && found->kind != J_BOOL) give_up("%s is not a number", key);
    return found->number;
}

const char *json_text(const json *object, const char *key, const char *otherwise) {
    json *found = json_get(object, key);
    if (!found) return otherwise;
    if (found->kind != J_TEXT) give_up("%s is not a text", key);
    return found->text;
}
