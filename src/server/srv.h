/* The server as its own files see it. */
#ifndef SERVER_SRV_H
#define SERVER_SRV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "server/drive.h"
#include "server/hub.h"
#include "server/openai.h"
#include "server/server.h"

/* So much of a body every connection may send at any time; beyond it all of them together may have
 * SRV_BODIES times server.body_max in memory. */
enum { SRV_BODY_SMALL = 16384, SRV_BODIES = 4 };

struct srv_http;
struct srv_settings;

struct srv {
    struct srv_config config;
    struct eng_stack *stack;
    struct srv_model model;
    char model_name[BASE_OPTION_TEXT];
    int64_t started;            /* Unix seconds */
    uint64_t started_ns;
    atomic_bool draining;
    atomic_size_t body_bytes;   /* of bodies that are not whole, beyond SRV_BODY_SMALL of each */
    struct srv_hub hub;
    bool hub_open;
    struct srv_drive drive;
    bool drive_open;
    struct srv_http *http, *admin;
    /* What holds now: changed by one change at a time, read under settings_lock. */
    pthread_mutex_t change_lock, settings_lock;
    struct srv_settings *settings;
    const char *command_line;
};

#endif
