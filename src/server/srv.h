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
