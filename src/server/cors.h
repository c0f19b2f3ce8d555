/* Which web pages may call the API from a browser (cross-origin resource sharing, WHATWG Fetch).
 * A list is server.cors_origins: origins ("https://chat.example", "http://localhost:3000") with
 * commas between them, * for any page, or empty for none. Any thread; nothing allocates.
 */
#ifndef SERVER_CORS_H
#define SERVER_CORS_H

#include "base/err.h"

/* BASE_ECONFIG with a sentence if something in the list is no origin. */
int srv_cors_check(const char *list, struct base_err *err);

/* What Access-Control-Allow-Origin says to a page of `origin` (NULL: the request names none): that
 * origin itself, "*", or NULL if the page may not call. */
const char *srv_cors_allows(const char *list, const char *origin);

#endif
