/**
 * One hot flash is one row, however many looked for it: a rule and a model each report their own event, and the two are
 * one episode.
 *
 * Events of one kind and wearer are one episode when different producers made them and their onsets are at most
 * `EPISODE_MS` after the episode's first. Two events of one producer are never one episode, for a producer reports an
 * episode once; and an event that does not say who made it stands alone, for hiding an event is worse than showing two.
 *
 * An episode is open while any of its events is: what nobody has acknowledged is never shown as dealt with.
 */
import type { ClinicEvent } from './api/types';

export const EPISODE_MS = 10 * 60_000;

export interface Episode {
  /** That of the event with the first onset. */
  readonly id: string;
  readonly userId: string;
  readonly eventType: string;
  /** The first onset. */
  readonly time: number;
  /** That of the surest event which has one. */
  readonly severity: string | null;
  /** The highest. */
  readonly confidence: number | null;
  /** Who found it, as the API names them, by onset; empty when the event does not say. */
  readonly producers: readonly string[];
  /** When the last of its events was acknowledged; null while one is not. */
  readonly acknowledgedAt: number | null;
  /** By onset. */
  readonly events: readonly ClinicEvent[];
}

/** For example `rule:sternal/1` or `model:hot_flash/1.0.0`; empty when the event does not say. */
export function producer(event: ClinicEvent): string {
  const name = event.data['producer'];
  return typeof name === 'string' ? name : '';
}

/** An event's identity. The producer is part of it: two may put the onset on the same millisecond. */
export function eventId(event: ClinicEvent): string {
  return `${event.userId}|${event.eventType}|${event.time}|${producer(event)}`;
}

/** The episodes that these events are, newest first, whatever order the events are in. */
export function episodes(events: readonly ClinicEvent[]): Episode[] {
  const inOrder = [...events].sort((a, b) => a.time - b.time || order(eventId(a), eventId(b)));
  const groups: ClinicEvent[][] = [];
  /** Those that a later event may still belong to, by wearer and kind. */
  const growing = new Map<string, ClinicEvent[][]>();
  for (const event of inOrder) {
    const whose = `${event.userId}|${event.eventType}`;
    const near = (growing.get(whose) ?? []).filter((group) => event.time - onset(group) <= EPISODE_MS);
    const by = producer(event);
    // The nearest before it: of two episodes shortly after one another, the second is the likelier.
    const its = by === '' ? undefined : near.filter((group) => group.every((e) => producer(e) !== '' && producer(e) !== by)).pop();
    if (its) {
      its.push(event);
    } else {
      const group = [event];
      groups.push(group);
      near.push(group);
    }
    growing.set(whose, near);
  }
  return groups.reverse().map(episode);
}

/** The events of an episode that are still to be acknowledged, one for each onset: the API names an event by that. */
export function unacknowledged(episode: Episode): ClinicEvent[] {
  const byOnset = new Map<number, ClinicEvent>();
  for (const e of episode.events) if (e.acknowledgedAt === null) byOnset.set(e.time, e);
  return [...byOnset.values()];
}

/** `found by rule and model`; empty when the events do not say. */
export function foundBy(episode: Episode): string {
  // What sort of producer it is; which version of it says nothing to a clinician.
  const sorts = new Set(episode.producers.map((name) => (name.split(':')[0] ?? '').replace(/[_-]+/g, ' ').trim()).filter(Boolean));
  const words = [...sorts].sort((a, b) => rank(a) - rank(b));
  const last = words.pop();
  if (last === undefined) return '';
  return `found by ${words.length > 0 ? `${words.join(', ')} and ` : ''}${last}`;
}

function rank(sort: string): number {
  const at = ['rule', 'model'].indexOf(sort);
  return at < 0 ? 2 : at;
}

function episode(events: ClinicEvent[]): Episode {
  const first = events[0] as ClinicEvent;
  const bySureness = [...events].sort((a, b) => (b.confidence ?? -1) - (a.confidence ?? -1));
  let acknowledgedAt: number | null = 0;
  for (const e of events) {
    acknowledgedAt = acknowledgedAt === null || e.acknowledgedAt === null ? null : Math.max(acknowledgedAt, e.acknowledgedAt);
  }
  return {
    id: eventId(first),
    userId: first.userId,
    eventType: first.eventType,
    time: first.time,
    severity: bySureness.find((e) => e.severity !== null)?.severity ?? null,
    confidence: bySureness[0]?.confidence ?? null,
    producers: events.map(producer).filter((name) => name !== ''),
    acknowledgedAt,
    events,
  };
}

function onset(group: readonly ClinicEvent[]): number {
  return group[0]?.time ?? Number.NEGATIVE_INFINITY;
}

function order(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
