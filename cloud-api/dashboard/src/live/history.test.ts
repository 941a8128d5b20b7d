import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Problem, Unreachable } from '../api/http';
import type { Point } from '../api/types';
import { History } from './history';

const TYPES = ['heart_rate', 'skin_temperature', 'eda'];

/** Answers when told to. */
function server() {
  const open: { id: string; answer(points: Point[]): Promise<void>; fail(error: Error): Promise<void> }[] = [];
  const delivered: [string, number][] = [];
  const history = new History(
    TYPES,
    {
      fetch: (userId, readingType) =>
        new Promise((resolve, reject) => {
          const id = `${userId}|${readingType}`;
          const done = async (settle: () => void) => {
            open.splice(open.findIndex((q) => q === question), 1);
            settle();
            await vi.advanceTimersByTimeAsync(0);
          };
          const question = { id, answer: (p: Point[]) => done(() => resolve(p)), fail: (e: Error) => done(() => reject(e)) };
          open.push(question);
        }),
      deliver: (userId, readingType, points) => delivered.push([`${userId}|${readingType}`, points.length]),
    },
    () => 0,
  );
  const asked = (id: string) => {
    const question = open.find((q) => q.id === id);
    if (!question) throw new Error(`${id} is not asked for`);
    return question;
  };
  return { history, open, delivered, asked };
}

const POINT: Point = [1, 2, 2, 2];

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('History', () => {
  it('lets no series wait for another of its wearer', async () => {
    const { history, delivered, asked } = server();
    history.want('u');
    await asked('u|eda').answer([POINT]);
    expect(delivered).toEqual([['u|eda', 1]]);
  });

  it('gets the others of a wearer when one fails, and that one on a later try', async () => {
    const { history, open, delivered, asked } = server();
    history.want('u');
    await asked('u|heart_rate').fail(new Unreachable());
    await asked('u|skin_temperature').answer([POINT]);
    await asked('u|eda').answer([POINT]);
    expect(delivered.map(([id]) => id)).toEqual(['u|skin_temperature', 'u|eda']);
    await vi.advanceTimersByTimeAsync(2_000);
    await asked('u|heart_rate').fail(new Problem(503, 'Not ready', ''));
    await vi.advanceTimersByTimeAsync(3_900);
    expect(open).toHaveLength(0);
    await vi.advanceTimersByTimeAsync(100);
    await asked('u|heart_rate').answer([POINT]);
    expect(delivered).toHaveLength(3);
  });

  it('does not ask again for what the server refused', async () => {
    const { history, open, asked } = server();
    history.want('u');
    await asked('u|eda').fail(new Problem(404, 'Not found', ''));
    await vi.advanceTimersByTimeAsync(600_000);
    expect(open.map((q) => q.id)).toEqual(['u|heart_rate', 'u|skin_temperature']);
  });

  it('asks once, and for few at a time', async () => {
    const { history, open } = server();
    for (let n = 0; n < 50; n++) history.want(`u${n}`);
    history.want('u0');
    let most = 0;
    let all = 0;
    while (open.length > 0) {
      most = Math.max(most, open.length);
      all++;
      await open[0]?.answer([]);
    }
    expect(most).toBe(6);
    expect(all).toBe(150);
  });

  it('does not use an answer from before a refill, for it ends where the hole begins', async () => {
    const { history, open, delivered, asked } = server();
    history.want('u');
    const early = asked('u|eda');
    history.refill();
    await early.answer([POINT]);
    expect(delivered).toEqual([]);
    for (const q of [...open]) await q.answer([POINT, POINT]);
    expect(delivered.filter(([id]) => id === 'u|eda')).toEqual([['u|eda', 2]]);
  });

  it('stops trying when the page is left', async () => {
    const { history, open, asked } = server();
    history.want('u');
    await asked('u|eda').fail(new Unreachable());
    history.stop();
    await vi.advanceTimersByTimeAsync(600_000);
    expect(open.map((q) => q.id)).toEqual(['u|heart_rate', 'u|skin_temperature']);
  });
});
