/* A JSON reader for the examples: a text becomes a tree. What is allocated here and elsewhere lives until forget(). */
#ifndef JSON_H
#define JSON_H

#include <stddef.h>

typedef enum { J_NULL, J_BOOL, J_NUMBER, J_TEXT, J_LIST, J_OBJECT } json_kind;

typedef struct json {
    json_kind kind;
    double number;       /* also 0 or 1 of a bool */
    char *text;
    size_t count;        /* members of a list or an object */
    char **keys;         /* of an object */
    struct json **items;
} json;

json *json_parse(const char *text);                       /* stops through give_up() where it is not JSON */
json *json_get(const json *object, const char *key);      /* NULL where there is none, or null */
double json_number(const json *object, const char *key, double otherwise);
const char *json_text(const json *object, const char *key, const char *otherwise);

void *keep(size_t bytes);    /* zeroed memory, until forget() */
void forget(void);
char *read_file(const char *path, size_t *size);          /* a 0 follows the last byte */
void give_up(const char *format, ...);                    /* never returns; every program has its own */

#endif
