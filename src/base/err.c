#include "base/err.h"

#include <stdio.h>
#include <string.h>

/* Sentences quote what came from outside: what would break a line or steer a terminal is shown as
 * a question mark. */
static void make_one_line(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
    }
}

int base_err_set(struct base_err *err, int code, const char *format, ...)
{
    if (!err || err->code != 0) return code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    make_one_line(err->text);
    err->code = code;
    return code;
}

void base_err_prefix(struct base_err *err, const char *format, ...)
{
    if (!err || err->code == 0) return;
    char tail[BASE_ERR_TEXT];
    memcpy(tail, err->text, sizeof tail);
    va_list args;
    va_start(args, format);
    int used = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    make_one_line(err->text);
    if (used < 0 || (size_t)used >= sizeof err->text) return;
    size_t room = sizeof err->text - (size_t)used;
    snprintf(err->text + used, room, ": %.*s", (int)(room > 3 ? room - 3 : 0), tail);
}

const char *base_err_name(int code)
{
    switch (code) {
    case 0: return "no error";
    case BASE_EFORMAT: return "bad format";
    case BASE_ECHECKSUM: return "checksum mismatch";
    case BASE_ESTALE: return "file changed after it was indexed";
    case BASE_EVERSION: return "unknown version";
    case BASE_EMISMATCH: return "mismatch";
    case BASE_EDEVICE: return "device failure";
    case BASE_ECONFIG: return "bad setting";
    case BASE_EBUDGET: return "does not fit its memory budget";
    case BASE_ETORN: return "incomplete tail";
    case BASE_EQUARANTINE: return "expert quarantined";
    default: return code < 0 ? strerror(-code) : "success";
    }
}
