import { useCallback, useEffect, useRef, useState } from 'react';
import { explain } from '../api/http';

/** Something that a person set going: whether it runs, and why it failed. */
export function useTask(): { busy: boolean; error: string | null; run: (work: () => Promise<void>) => Promise<boolean> } {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const run = useCallback(async (work: () => Promise<void>) => {
    setBusy(true);
    setError(null);
    try {
      await work();
      return true;
    } catch (e) {
      setError(explain(e));
      return false;
    } finally {
      setBusy(false);
    }
  }, []);
  return { busy, error, run };
}

const RELOAD_MS = 15_000;

/** Something of the server's, fetched when the view opens, when asked, and now and then. */
export function useLoaded<T>(fetch: () => Promise<T>): { value: T | null; error: string | null; reload: () => void } {
  const [value, setValue] = useState<T | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [turn, setTurn] = useState(0);
  const latest = useRef(fetch);
  useEffect(() => {
    latest.current = fetch;
  }, [fetch]);
  useEffect(() => {
    let gone = false;
    latest.current().then(
      (next) => {
        if (gone) return;
        setValue(next);
        setError(null);
      },
      (e: unknown) => {
        if (!gone) setError(explain(e));
      },
    );
    const timer = setTimeout(() => setTurn((n) => n + 1), RELOAD_MS);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [turn]);
  return { value, error, reload: useCallback(() => setTurn((n) => n + 1), []) };
}
