/**
 * The page's clock: this computer's, corrected by the server's when the two differ by more than a few seconds (else
 * ages would be nonsense on a computer whose clock is wrong), ticking once a second for everything that shows an age.
 */
import { useSyncExternalStore } from 'react';

/** The `Date` header has whole seconds and a network's delay in it; smaller differences are not corrected. */
const TOLERATED_MS = 5_000;

let offset = 0;
let tick = Date.now();
const listeners = new Set<() => void>();

export function now(): number {
  return Date.now() + offset;
}

/** How far this computer's clock is from the server's, 0 when near enough; positive: the server is ahead. */
export function clockOffset(): number {
  return offset;
}

export function serverSaid(serverMs: number, sentAt: number): void {
  const received = Date.now();
  // Half a second: the header is rounded down.
  const difference = serverMs + 500 - (sentAt + received) / 2;
  offset = Math.abs(difference) - (received - sentAt) / 2 > TOLERATED_MS ? Math.round(difference) : 0;
}

let timer: ReturnType<typeof setInterval> | undefined;

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  timer ??= setInterval(() => {
    tick = now();
    for (const l of [...listeners]) l();
  }, 1_000);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  };
}

/** `select` of the time now, every second; the component renders again only when the answer changes. */
export function useClock<T extends string | number | boolean>(select: (now: number) => T): T {
  return useSyncExternalStore(subscribe, () => select(Math.max(tick, Math.floor(now() / 1000) * 1000)));
}
