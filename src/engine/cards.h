/* The cards of several ranks: one each, of one kind, and what goes between them. */
#ifndef ENGINE_CARDS_H
#define ENGINE_CARDS_H

#include <stdbool.h>

#include "base/err.h"
#include "comm/comm.h"
#include "device/device.h"

/* Collective. BASE_EMISMATCH for cards of several kinds, BASE_ECONFIG when two ranks have the same
 * one: they would take each other's memory and time. With ranks.comm: nccl the cards are joined,
 * and what waits for the device's stream watches the other ranks. What the device says of its end
 * names this rank from then on. */
int eng_cards_join(struct dev *device, struct comm *comm, struct base_err *err);
/* Before the device ends; either may be NULL. Its stream is through, or in_order is false: then the
 * other ranks are not waited for. */
void eng_cards_leave(struct dev *device, struct comm *comm, bool in_order);

#endif
