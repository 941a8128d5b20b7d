import { useEffect, useRef, useState } from 'react';
import { useApp, useStore } from '../context';
import { eventId } from '../episodes';
import { sentence } from '../format';
import { called } from '../names';

/** Tells screen readers of new events and of the connection; live values are left out, or nothing else would be heard. */
export function Announcer() {
  const { clinic, zone } = useApp();
  const episodes = useStore('events', (s) => s.episodes);
  const loaded = useStore('users', (s) => s.loaded);
  const { state } = useStore('connection', (s) => s.connection);
  const known = useRef<Set<string> | null>(null);
  const lost = useRef(false);
  const [words, setWords] = useState('');

  useEffect(() => {
    if (!loaded) return;
    const before = known.current;
    known.current = new Set(episodes.flatMap((e) => e.events).filter((e) => e.acknowledgedAt === null).map(eventId));
    // What was there when the page opened is not news, nor is that a second producer found an episode already open.
    const news = before ? episodes.filter((e) => e.acknowledgedAt === null && !e.events.some((m) => before.has(eventId(m)))) : [];
    const first = news[0];
    if (!first) return;
    const name = called(clinic.store.users.find((u) => u.id === first.userId), 'a wearer');
    setWords(`${sentence(first.eventType)}: ${name}, ${zone.time(first.time)}.${news.length > 1 ? ` And ${news.length - 1} more.` : ''}`);
  }, [episodes, loaded, clinic, zone]);

  useEffect(() => {
    if (state === 'lost') lost.current = true;
    if (state === 'open' && lost.current) {
      lost.current = false;
      setWords('Connected again.');
    }
  }, [state]);

  return (
    <p className="sr" role="status" aria-live="polite">
      {words}
    </p>
  );
}
